-- Issues for the user API (spec 02 §1.4, 06 §5 and §6).

-- name: get_issue
-- By id ($2) or by number ($3) within a workspace.
select i.*, w.issue_prefix
from issue i join workspace w on w.id = i.workspace_id
where i.workspace_id = $1 and (i.id = $2::uuid or i.number = $3::int);

-- name: hold_issue
-- As get_issue, and nobody deletes it until this transaction ends: something is to point at it.
select i.*, w.issue_prefix
from issue i join workspace w on w.id = i.workspace_id
where i.workspace_id = $1 and (i.id = $2::uuid or i.number = $3::int)
for key share of i;

-- name: lock_issue
-- As get_issue, and nobody else changes it until this transaction ends. Foreign keys to it
-- (comments, tasks) are not held up.
select i.*, w.issue_prefix
from issue i join workspace w on w.id = i.workspace_id
where i.workspace_id = $1 and (i.id = $2::uuid or i.number = $3::int)
for no key update of i;

-- name: lock_issue_and_parent
-- As lock_issue, and with it its parent, which a change of its status may move: both by id, in the
-- order of lock_issues, whichever of them is named.
with named as (
    select i.id, i.parent_issue_id from issue i
    where i.workspace_id = $1 and (i.id = $2::uuid or i.number = $3::int)
), held as (
    select i.* from issue i
    where i.workspace_id = $1
      and i.id in (select n.id from named n union all select n.parent_issue_id from named n)
    order by i.id
    for no key update of i
)
select i.*, w.issue_prefix
from held i join workspace w on w.id = i.workspace_id
where i.id in (select n.id from named n);

-- name: lock_issues
-- Several issues by id, always locked in the same order so that two batches cannot deadlock. With $3
-- their parents too, which a change of theirs may move; they are not returned.
with held as (
    select i.* from issue i
    where i.workspace_id = $1
      and (i.id = any($2::uuid[])
           or ($3::boolean and i.id in (select c.parent_issue_id from issue c
                                        where c.workspace_id = $1 and c.id = any($2::uuid[]))))
    order by i.id
    for no key update of i
)
select i.*, w.issue_prefix
from held i join workspace w on w.id = i.workspace_id
where i.id = any($2::uuid[])
order by i.id;

-- name: lock_doomed
-- As lock_issues, for deleting: nobody even points at them until this transaction ends. Their children
-- are locked along, since they lose their parent; they are not returned.
with held as (
    select i.* from issue i
    where i.workspace_id = $1 and (i.id = any($2::uuid[]) or i.parent_issue_id = any($2::uuid[]))
    order by i.id
    for update of i
)
select i.*, w.issue_prefix
from held i join workspace w on w.id = i.workspace_id
where i.id = any($2::uuid[])
order by i.id;

-- name: list_issues
-- One page and the full count in one statement. /*order*/ is one of work.ORDERS.
with matching as materialized (
    select i.*
    from issue i
    where i.workspace_id = $1
        and ($2::text is null or i.status = $2)
        and ($3::text is null or i.priority = $3)
        and ($4::uuid[] is null or i.assignee_id = any($4))
        and ($5::uuid is null or i.creator_id = $5)
        and ($6::uuid is null or i.project_id = $6)
        and ($7::uuid is null
            or (i.assignee_type = 'agent'
                and i.assignee_id in (select id from agent where owner_id = $7))
            or (i.assignee_type = 'squad' and i.assignee_id in (
                select s.id from squad s join agent a on a.id = s.leader_id
                where s.workspace_id = $1 and a.owner_id = $7
                union
                select m.squad_id from squad_member m
                left join agent a on m.member_type = 'agent' and a.id = m.member_id
                where (m.member_type = 'member' and m.member_id = $7) or a.owner_id = $7)))
        and ($8::jsonb is null or i.metadata @> $8)
        and ($9::text is null
            or (case when $9 = 'updated_at' then i.updated_at else i.created_at end >= $10
            and case when $9 = 'updated_at' then i.updated_at else i.created_at end < $11))
        and (not $12::boolean or i.start_date is not null or i.due_date is not null)
        and (not $13::boolean or i.status not in ('done', 'cancelled'))
), page as (
    select m.*, row_number() over (order by /*order*/ m.created_at desc, m.id) as place
    from matching m
    order by place
    limit $14::bigint offset $15::bigint
)
select (select count(*) from matching) as total, page.*, w.issue_prefix,
       issue_labels(page.id) as labels
from workspace w left join page on true
where w.id = $1
order by page.place;

-- name: list_children
-- The children of some issues, by number.
select i.*, w.issue_prefix
from issue i join workspace w on w.id = i.workspace_id
where i.workspace_id = $1 and i.parent_issue_id = any($2::uuid[])
order by i.number
limit 1000;

-- name: child_progress
-- How many children each parent has, and how many are closed.
select parent_issue_id, count(*) as total,
    count(*) filter (where status in ('done', 'cancelled')) as done
from issue
where workspace_id = $1 and parent_issue_id is not null
group by parent_issue_id
order by parent_issue_id
limit 10000;

-- name: lock_title
-- Creates of the same open title under the same parent and project go one after the other.
select pg_advisory_xact_lock(hashtextextended(
    concat_ws('|', 'issue-active-duplicate', $1::uuid, coalesce($2::uuid::text, '-'),
        coalesce($3::uuid::text, '-'), issue_title_key($4)), 0));

-- name: find_duplicate
-- An open issue with the same project, parent and (nearly) the same title.
select i.*, w.issue_prefix
from issue i join workspace w on w.id = i.workspace_id
where i.workspace_id = $1
    and i.project_id is not distinct from $2
    and i.parent_issue_id is not distinct from $3
    and md5(issue_title_key(i.title)) = md5(issue_title_key($4))
    and i.status not in ('done', 'cancelled')
order by i.number
limit 1;

-- name: create_issue
-- The next number of the workspace, the top of the column, the row.
with counter as (
    update workspace set issue_counter = issue_counter + 1
    where id = $1
    returning issue_counter, issue_prefix
), made as (
    insert into issue (workspace_id, number, title, description, status, priority, assignee_type,
        assignee_id, creator_type, creator_id, parent_issue_id, project_id, stage, start_date,
        due_date, origin_type, origin_id, position)
    select $1, counter.issue_counter, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14,
        $15, $16, (
            select coalesce(min(i.position), 0) - 1
            from issue i where i.workspace_id = $1 and i.status = $4
        )
    from counter
    returning *
)
select made.*, counter.issue_prefix from made, counter;

-- name: update_issues
-- Change only what was sent. $1 issues; $2 is an object of new values, absent keys stay as they are now;
-- $3 and $4 the kind and id of who does it.
update issue set
    title = case when $2::jsonb ? 'title' then $2->>'title' else title end,
    description = case when $2::jsonb ? 'description' then $2->>'description' else description end,
    status = case when $2::jsonb ? 'status' then $2->>'status' else status end,
    priority = case when $2::jsonb ? 'priority' then $2->>'priority' else priority end,
    position = case when $2::jsonb ? 'position'
        then ($2->>'position')::double precision else position end,
    assignee_type = case when $2::jsonb ? 'assignee_type'
        then $2->>'assignee_type' else assignee_type end,
    assignee_id = case when $2::jsonb ? 'assignee_id'
        then ($2->>'assignee_id')::uuid else assignee_id end,
    parent_issue_id = case when $2::jsonb ? 'parent_issue_id'
        then ($2->>'parent_issue_id')::uuid else parent_issue_id end,
    project_id = case when $2::jsonb ? 'project_id'
        then ($2->>'project_id')::uuid else project_id end,
    stage = case when $2::jsonb ? 'stage' then ($2->>'stage')::int else stage end,
    start_date = case when $2::jsonb ? 'start_date'
        then ($2->>'start_date')::date else start_date end,
    due_date = case when $2::jsonb ? 'due_date' then ($2->>'due_date')::date else due_date end,
    edited_by_others = edited_by_others
        or ($2::jsonb ? 'description' and $2->>'description' is distinct from description
            and (creator_type, creator_id) is distinct from ($3::text, $4::uuid)),
    updated_at = now()
where id = any($1::uuid[])
returning *;

-- name: delete_issues
delete from issue where id = any($1::uuid[]);

-- name: parent_facts
-- A parent of this workspace; it cannot be deleted until this transaction ends.
select id, project_id from issue where workspace_id = $1 and id = $2 for key share;

-- name: lock_family
-- Changes of parents go one after the other, so that two of them cannot make a circle.
select pg_advisory_xact_lock(hashtextextended('issue-parent|' || $1::uuid, 0));

-- name: ancestors
-- $1 itself and its ancestors, at most ten levels up.
with recursive up (id, parent_id, depth) as (
    select id, parent_issue_id, 0 from issue where id = $1
    union all
    select i.id, i.parent_issue_id, up.depth + 1
    from up join issue i on i.id = up.parent_id
    where up.depth < 10
)
select id from up;

-- name: set_metadata
-- One key, if it exists or there is room for it. No row: too many keys or too large.
update issue set metadata = metadata || jsonb_build_object($2::text, $3::jsonb),
    updated_at = now()
where id = $1
    and (metadata ? $2 or (select count(*) from jsonb_object_keys(metadata)) < $4)
    and octet_length((metadata || jsonb_build_object($2::text, $3::jsonb))::text) <= $5
returning metadata;

-- name: delete_metadata
update issue set metadata = metadata - $2::text,
    updated_at = case when metadata ? $2 then now() else updated_at end
where id = $1
returning metadata;

-- name: search_issues
-- Rank of the first rule that matches; every word must stand somewhere. $2 the phrase,
-- $3 its pattern, $4 the patterns of its words, $5 a number it may name, $6 closed ones too.
with candidate as (
    select i.*,
        case
            when i.number = $5::int then 0
            when lower(i.title) = lower($2) then 1
            when starts_with(lower(i.title), lower($2)) then 2
            when i.title ilike $3 then 3
            when i.title ilike all ($4::text[]) then 4
            when i.description ilike $3 then 5
            when i.description ilike all ($4) then 6
            when exists (select from comment c
                where c.issue_id = i.id and c.content ilike $3) then 7
            when not exists (
                select from unnest($4) as word
                where not (i.title ilike word or coalesce(i.description, '') ilike word
                    or exists (select from comment c
                        where c.issue_id = i.id and c.content ilike word))) then 8
        end as rank
    from issue i
    where i.workspace_id = $1 and ($6 or i.status not in ('done', 'cancelled'))
), matching as materialized (
    select id, rank, status, updated_at from candidate where rank is not null
), page as (
    select id, rank, row_number() over (order by rank,
        array_position(array['in_progress', 'in_review', 'todo', 'blocked', 'backlog', 'done',
            'cancelled'], status), updated_at desc, id) as place
    from matching
    order by place
    limit $7::bigint offset $8::bigint
)
select (select count(*) from matching) as total, page.rank, i.*, w.issue_prefix, (
    select c.content from comment c
    where c.issue_id = i.id and (c.content ilike $3 or c.content ilike any ($4))
    order by c.content ilike $3 desc, c.created_at, c.id
    limit 1
) as comment_content
from workspace w
    left join page on true
    left join issue i on i.id = page.id
where w.id = $1
order by page.place;

-- name: others_wrote
-- Whether anybody but an agent wrote or attached something. $1 agent, $2 issues it would go with,
-- $3 or a comment that it hangs below
with recursive below as (
    select id from comment where id = $3::uuid
    union
    select c.id from comment c join below b on c.parent_id = b.id
)
select exists (
    select from comment c
    where (c.issue_id = any($2::uuid[]) or c.id in (select id from below))
      and not (c.author_type = 'system' or (c.author_type = 'agent' and c.author_id = $1))
) or exists (
    select from attachment f
    where (f.issue_id = any($2::uuid[]) or f.comment_id in (select id from below)
           or f.comment_id in (select id from comment where issue_id = any($2::uuid[])))
      and not (f.uploader_type = 'agent' and f.uploader_id = $1)
);
