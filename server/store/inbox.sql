-- A person's inbox, what they follow, and what was done on an issue (spec 06 §16, §7.5, §7.6).

-- name: list_items
-- Newest first. $1 workspace, $2 whose
select n.*, i.status as issue_status
from inbox_item n left join issue i on i.id = n.issue_id
where n.workspace_id = $1 and n.recipient_type = 'member' and n.recipient_id = $2
  and not n.archived
order by n.created_at desc, n.id
limit 500;

-- name: count_unread
select count(*) from inbox_item
where workspace_id = $1 and recipient_type = 'member' and recipient_id = $2
  and not archived and not read;

-- name: read_item
-- $1 workspace, $2 whose, $3 item
update inbox_item n set read = true
where n.workspace_id = $1 and n.recipient_type = 'member' and n.recipient_id = $2 and n.id = $3
returning n.*, (select status from issue i where i.id = n.issue_id) as issue_status;

-- name: archive_item
-- With all others of the same issue.
with chosen as (
    select * from inbox_item
    where workspace_id = $1 and recipient_type = 'member' and recipient_id = $2 and id = $3
)
update inbox_item n set archived = true, read = true
from chosen c
where n.recipient_type = 'member' and n.recipient_id = $2 and n.workspace_id = $1
  and (n.id = c.id or n.issue_id = c.issue_id) and not n.archived
returning n.*, (select status from issue i where i.id = n.issue_id) as issue_status;

-- name: read_all
with changed as (
    update inbox_item set read = true
    where workspace_id = $1 and recipient_type = 'member' and recipient_id = $2
      and not archived and not read
    returning 1
)
select count(*) from changed;

-- name: archive_many
-- $3: all, those that were read, or those of finished issues
with changed as (
    update inbox_item n set archived = true
    where n.workspace_id = $1 and n.recipient_type = 'member' and n.recipient_id = $2
      and not n.archived
      and ($3::text = 'all' or ($3 = 'read' and n.read)
           or ($3 = 'completed' and exists (
               select from issue i where i.id = n.issue_id and i.status in ('done', 'cancelled'))))
    returning 1
)
select count(*) from changed;

-- name: get_preferences
select preferences from notification_preference where workspace_id = $1 and user_id = $2;

-- name: set_preferences
insert into notification_preference (workspace_id, user_id, preferences) values ($1, $2, $3)
on conflict (workspace_id, user_id) do update
set preferences = excluded.preferences, updated_at = now()
returning preferences;

-- name: list_subscribers
select issue_id, user_type, user_id, reason, created_at from issue_subscriber
where issue_id = $1 order by created_at, user_id;

-- name: can_follow
-- $1 workspace, $2 type, $3 id
select case $2::text
    when 'agent' then exists (select from agent where workspace_id = $1 and id = $3)
    else exists (select from member where workspace_id = $1 and user_id = $3) end;

-- name: subscribe
insert into issue_subscriber (issue_id, user_type, user_id, reason) values ($1, $2, $3, $4)
on conflict do nothing
returning user_id;

-- name: unsubscribe
delete from issue_subscriber where issue_id = $1 and user_type = $2 and user_id = $3
returning user_id;

-- name: timeline
-- Comments and what was done, in the order it happened. $1 issue
select * from (
    select 'comment' as type, c.id, c.author_type as actor_type, c.author_id as actor_id,
           c.created_at, c.content, c.parent_id, c.updated_at, c.type as comment_type,
           c.resolved_at, c.resolved_by_type, c.resolved_by_id, c.source_task_id,
           null::text as action, null::jsonb as details
    from comment c where c.issue_id = $1
    union all
    select 'activity', a.id, a.actor_type, a.actor_id, a.created_at, null, null, null, null, null,
           null, null, null, a.action, a.details
    from activity_log a where a.issue_id = $1
) entry
order by created_at desc, id desc
limit 2000;

-- name: react_issue
with added as (
    insert into issue_reaction (issue_id, workspace_id, actor_type, actor_id, emoji)
    values ($1, $2, $3, $4, $5)
    on conflict (issue_id, actor_type, actor_id, emoji) do nothing
    returning *
)
select *, true as is_new from added
union all
select *, false from issue_reaction
where issue_id = $1 and actor_type = $3 and actor_id = $4 and emoji = $5
  and not exists (select from added);

-- name: unreact_issue
delete from issue_reaction
where issue_id = $1 and actor_type = $2 and actor_id = $3 and emoji = $4
returning *;

-- name: react_comment
with added as (
    insert into comment_reaction (comment_id, workspace_id, actor_type, actor_id, emoji)
    values ($1, $2, $3, $4, $5)
    on conflict (comment_id, actor_type, actor_id, emoji) do nothing
    returning *
)
select *, true as is_new from added
union all
select *, false from comment_reaction
where comment_id = $1 and actor_type = $3 and actor_id = $4 and emoji = $5
  and not exists (select from added);

-- name: unreact_comment
delete from comment_reaction
where comment_id = $1 and actor_type = $2 and actor_id = $3 and emoji = $4
returning *;

-- name: hold_comment
select id from comment where workspace_id = $1 and id = $2 for key share;
