-- Comments and their threads (spec 06 §7, 02 §1.4). A thread is a root with all its descendants.
-- Readers take $2 = "only strictly newer than" and $3 = "cut the content to 201 characters".

-- name: list_comments
select c.*, case when $3 then left(c.content, 201) else c.content end as shown
from comment c
where c.issue_id = $1 and ($2::timestamptz is null or c.created_at > $2)
order by c.created_at, c.id
limit 2000;

-- name: list_roots
-- Only the roots, each with what hangs below it.
with recursive thread (id, root_id, created_at) as (
    select id, id, created_at from comment where issue_id = $1 and parent_id is null
    union all
    select c.id, t.root_id, c.created_at from thread t join comment c on c.parent_id = t.id
), activity as (
    select root_id, count(*) - 1 as replies, max(created_at) as last_activity
    from thread group by root_id
)
select c.*, case when $3 then left(c.content, 201) else c.content end as shown,
    a.replies, a.last_activity
from activity a join comment c on c.id = a.root_id
where $2::timestamptz is null or c.created_at > $2
order by c.created_at, c.id
limit 2000;

-- name: list_recent
-- The $4 most recently active threads, whole, before the cursor ($5, $6) if there is one.
with recursive thread (id, root_id, created_at) as (
    select id, id, created_at from comment where issue_id = $1 and parent_id is null
    union all
    select c.id, t.root_id, c.created_at from thread t join comment c on c.parent_id = t.id
), activity as (
    select root_id, max(created_at) as last_activity from thread group by root_id
), chosen as (
    select root_id, last_activity from activity
    where $5::timestamptz is null or (last_activity, root_id) < ($5, $6::uuid)
    order by last_activity desc, root_id desc
    limit $4::bigint
)
select c.*, case when $3 then left(c.content, 201) else c.content end as shown,
    chosen.root_id, chosen.last_activity
from chosen
    join thread t on t.root_id = chosen.root_id
    join comment c on c.id = t.id
where $2::timestamptz is null or c.created_at > $2
order by chosen.last_activity, chosen.root_id, c.created_at, c.id
limit 2000;

-- name: find_root
-- The root of the thread a comment belongs to; no row when the issue has no such comment.
with recursive up (id, parent_id) as (
    select id, parent_id from comment where issue_id = $1 and id = $2
    union all
    select c.id, c.parent_id from up join comment c on c.id = up.parent_id
)
select id from up where parent_id is null;

-- name: lock_thread
-- Whoever changes a thread locks its root first: two changes of one thread, a reply and a deletion
-- among them, go one after the other and cannot deadlock.
with recursive up (id, parent_id) as (
    select id, parent_id from comment where workspace_id = $1 and id = $2
    union all
    select c.id, c.parent_id from up join comment c on c.id = up.parent_id
)
select c.id from comment c
where c.id = (select id from up where parent_id is null)
for no key update of c;

-- name: list_thread
-- One thread, root first; with $4 only its newest replies, before the cursor ($5, $6).
with recursive thread (id) as (
    select id from comment where issue_id = $7 and id = $1
    union all
    select c.id from thread t join comment c on c.parent_id = t.id
), replies as (
    select c.id, c.created_at
    from thread t join comment c on c.id = t.id
    where c.id <> $1 and ($5::timestamptz is null or (c.created_at, c.id) < ($5, $6::uuid))
    order by c.created_at desc, c.id desc
    limit case when $4::bigint is null then 1999 else least($4 + 1, 1999) end
)
select c.*, case when $3 then left(c.content, 201) else c.content end as shown
from comment c
where (c.id = $1 or c.id in (select id from replies))
    and ($2::timestamptz is null or c.created_at > $2)
order by c.id <> $1, c.created_at, c.id;

-- name: lock_comment
-- A comment of a thread whose root is locked.
select c.*, c.content as shown from comment c where c.workspace_id = $1 and c.id = $2
for no key update of c;

-- name: create_comment
-- The issue is locked, and the time is taken after that: comments become visible in the order of
-- their times, so that a reader who asks for what is newer than the last one seen misses none.
with made as (
    insert into comment (issue_id, workspace_id, author_type, author_id, content, type, parent_id,
        created_at, updated_at)
    select $1, $2, $3, $4, $5, $6, $7, moment, moment from clock_timestamp() as moment
    returning *
)
select made.*, made.content as shown from made;

-- name: update_comment
-- $3 and $4 the kind and id of who does it
update comment set content = $2, updated_at = now(),
    edited_by_others = edited_by_others
        or (author_type, author_id) is distinct from ($3::text, $4::uuid)
where id = $1
returning *, content as shown;

-- name: delete_comment
-- With the replies below it. Files stay with the issue that somebody else than a comment's author
-- uploaded: carrying a file in a comment gives no right to delete it.
with recursive below as (
    select id from comment where id = $1
    union
    select c.id from comment c join below b on c.parent_id = b.id
), kept as (
    update attachment f set comment_id = null, issue_id = coalesce(f.issue_id, c.issue_id)
    from comment c
    where f.comment_id = c.id and c.id in (select id from below)
      and (f.uploader_type, f.uploader_id) is distinct from (c.author_type, c.author_id)
)
delete from comment where id = $1;

-- name: resolve_comment
-- The first resolver and time stay.
update comment set resolved_at = coalesce(resolved_at, now()),
    resolved_by_type = coalesce(resolved_by_type, $2),
    resolved_by_id = coalesce(resolved_by_id, $3)
where id = $1
returning *, content as shown;

-- name: unresolve_comment
-- No row when it is not resolved.
update comment set resolved_at = null, resolved_by_type = null, resolved_by_id = null
where id = $1 and resolved_at is not null
returning *, content as shown;

-- name: unresolve_others
-- At most one comment of a thread is resolved: clear all below root $1 but $2.
with recursive thread (id) as (
    select id from comment where id = $1
    union all
    select c.id from thread t join comment c on c.parent_id = t.id
)
update comment set resolved_at = null, resolved_by_type = null, resolved_by_id = null
where id in (select id from thread) and id <> $2 and resolved_at is not null
returning *, content as shown;

-- name: trigger_of
-- The comment the caller's own task answers, if that task is on this issue.
select trigger_comment_id from agent_task_queue
where id = $1 and issue_id = $2 and trigger_comment_id is not null;

-- name: is_on
-- Whether a comment is on an issue.
select true from comment where id = $1 and issue_id = $2;

-- name: kept_silence
-- $1 issue, $2 task
select true from activity_log
where issue_id = $1 and actor_type = 'agent' and action = 'squad_leader_evaluated'
  and details ->> 'outcome' = 'no_action' and details ->> 'task_id' = $2::uuid::text
limit 1;
