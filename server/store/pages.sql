-- What only the HTML pages read: less of more rows than the API's own reads give.

-- name: board
-- The board: each column's first issues in their order, closed ones newest first, with the
-- column's full count. $2 = how many a column shows.
select id, number, title, status, priority, assignee_type, assignee_id, in_column
from (
    select id, number, title, status, priority, assignee_type, assignee_id, position, created_at,
        count(*) over (partition by status) as in_column,
        row_number() over (
            partition by status
            order by
                case when status in ('done', 'cancelled') then updated_at end desc,
                position, created_at desc
        ) as place
    from issue
    where workspace_id = $1
) ranked
where place <= $2
order by status, place;

-- name: active_runs
-- Every run of the workspace that has not ended, and which issue it is for.
select t.id, t.issue_id, t.agent_id, t.status, i.number
from (
    select id, issue_id, agent_id, status, created_at
    from agent_task_queue
    where workspace_id = $1
        and status in ('queued', 'dispatched', 'waiting_local_directory', 'running')
    order by created_at desc
    limit 1000
) t
left join issue i on i.id = t.issue_id
order by t.created_at;

-- name: run_notes
-- What the active runs of an issue last said of themselves beyond their transcript, of those that
-- $2 may read.
select t.id, t.progress, t.wait_reason
from agent_task_queue t
where t.issue_id = $1
    and t.status in ('queued', 'dispatched', 'waiting_local_directory', 'running')
    and may_use_agent(t.agent_id, case when t.agent_private then 'private' else '' end,
                      t.agent_owner_id, t.workspace_id, $2::uuid);
