-- Tasks as readers of the user API see them; changing them is dispatch's (spec 06 §6.5).

-- name: list_tasks
-- The runs of an issue, newest first. $2: who looks; `open` says whether they may read it.
select t.*, may_use_agent(t.agent_id, case when t.agent_private then 'private' else '' end,
                          t.agent_owner_id, t.workspace_id, $2::uuid) as open
from agent_task_queue t where t.issue_id = $1
order by t.created_at desc, t.id
limit 500;

-- name: active_tasks
-- The runs of an issue that are not over, newest first. $2: as above.
select t.*, may_use_agent(t.agent_id, case when t.agent_private then 'private' else '' end,
                          t.agent_owner_id, t.workspace_id, $2::uuid) as open
from agent_task_queue t
where t.issue_id = $1
    and t.status in ('queued', 'dispatched', 'waiting_local_directory', 'running')
order by t.created_at desc, t.id
limit 500;

-- name: agent_tasks
-- The runs of an agent, newest first; of chats only those of $2.
select * from agent_task_queue
where agent_id = $1 and (chat_session_id is null or initiator_id = $2::uuid)
order by created_at desc, id
limit 500;

-- name: task_snapshot
-- Every run that is not over, and of each agent the last one that ended. $2: who looks (null =
-- whoever may see all agents). $3: whose chats.
with visible as (
    select id from agent
    where workspace_id = $1
        and may_use_agent(id, visibility, owner_id, workspace_id, $2::uuid)
    limit 1000
), active as (
    select t.* from agent_task_queue t
    where t.workspace_id = $1 and t.agent_id in (select id from visible)
        and t.status in ('queued', 'dispatched', 'waiting_local_directory', 'running')
        and (t.chat_session_id is null or t.initiator_id = $3::uuid)
    order by t.created_at desc
    limit 1000
)
select * from active
union all
select last.*
from visible v cross join lateral (
    select t.* from agent_task_queue t
    where t.agent_id = v.id and t.status in ('completed', 'failed')
        and (t.chat_session_id is null or t.initiator_id = $3::uuid)
    order by t.created_at desc
    limit 1
) last;

-- name: get_task
-- A task of a workspace with what decides who may touch it. Of a chat that is deleted, what its agent
-- still says remains the business of who asked. $3: who looks.
select t.*, a.visibility as agent_visibility, a.owner_id as agent_owner,
       may_use_agent(a.id, a.visibility, a.owner_id, a.workspace_id, $3::uuid) as open,
       coalesce(c.creator_id, case when t.chat_session_id is not null then t.initiator_id end)
           as chat_of
from agent_task_queue t join agent a on a.id = t.agent_id
left join chat_session c on c.id = t.chat_session_id
where t.workspace_id = $1 and t.id = $2;

-- name: task_messages
select m.*, t.issue_id
from task_message m join agent_task_queue t on t.id = m.task_id
where m.task_id = $1 and m.seq > $2
order by m.seq
limit 10000;

-- name: issue_usage
-- The tokens of all runs of an issue, and how many runs have used any.
select coalesce(sum(u.input_tokens), 0)::bigint as input_tokens,
    coalesce(sum(u.output_tokens), 0)::bigint as output_tokens,
    coalesce(sum(u.cache_read_tokens), 0)::bigint as cache_read_tokens,
    coalesce(sum(u.cache_write_tokens), 0)::bigint as cache_write_tokens,
    count(distinct t.id) as task_count
from agent_task_queue t join task_usage u on u.task_id = t.id
where t.issue_id = $1;
