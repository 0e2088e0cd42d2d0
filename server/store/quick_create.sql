-- Issues that an agent writes from one sentence (spec 02 §3.8, §2.3).

-- name: target
-- The agent that would do it, and whether it can. $1 workspace, $2 agent or null, $3 squad or null,
-- $4 whose right to a private agent is checked, or null
select a.id as agent_id, a.runtime_id, a.archived_at is not null as archived, s.id as squad_id,
       s.archived_at is not null as squad_archived, r.status = 'online' as online,
       coalesce(r.metadata ->> 'cli_version', '') as cli_version,
       may_use_agent(a.id, a.visibility, a.owner_id, a.workspace_id, $4::uuid) as open
from (select 1) one
left join squad s on s.id = $3::uuid and s.workspace_id = $1
join agent a on a.workspace_id = $1 and a.id = coalesce($2::uuid, s.leader_id)
join agent_runtime r on r.id = a.runtime_id;

-- name: add_task
-- $1 workspace, $2 agent, $3 context, $4 who asks
insert into agent_task_queue (workspace_id, agent_id, runtime_id, priority, context,
                              initiator_type, initiator_id)
select $1, a.id, a.runtime_id, 3, $3, 'member', $4 from agent a where a.id = $2
returning *;

-- name: finish
-- What came of quick-creates that have ended: the issue each made is linked and followed, and who
-- asked is told, of the issue or that there is none. $1 an array of {task_id, error}
with ended as (
    select t.*, x.error as said, (t.context ->> 'requester_id')::uuid as requester,
           t.context ->> 'prompt' as prompt
    from jsonb_to_recordset($1::jsonb) as x (task_id uuid, error text)
    join agent_task_queue t on t.id = x.task_id
), made as (
    select e.id as task_id, i.*, w.issue_prefix || '-' || i.number as identifier
    from ended e
    cross join lateral (
        select * from issue i
        where i.workspace_id = e.workspace_id and i.origin_type = 'quick_create'
          and i.origin_id = e.id
        order by i.number limit 1
    ) i
    join workspace w on w.id = i.workspace_id
), linked as (
    update agent_task_queue t set issue_id = m.id from made m
    where t.id = m.task_id and t.issue_id is null
), followed as (
    insert into issue_subscriber (issue_id, user_type, user_id, reason)
    select m.id, 'member', e.requester, 'creator' from made m join ended e on e.id = m.task_id
    on conflict do nothing
    returning issue_id, user_id
), told as (
    insert into inbox_item (workspace_id, recipient_type, recipient_id, type, severity, issue_id,
                            title, body, actor_type, actor_id, details)
    select e.workspace_id, 'member', e.requester,
           case when m.id is null then 'quick_create_failed' else 'quick_create_done' end,
           case when m.id is null then 'action_required' else 'info' end, m.id,
           coalesce(m.title, 'Quick create failed'),
           case when m.id is null
                then coalesce(nullif(e.said, ''), 'The agent ended without making an issue.') end,
           'agent', e.agent_id,
           jsonb_strip_nulls(jsonb_build_object('task_id', e.id, 'agent_id', e.agent_id,
               'issue_id', m.id, 'identifier', m.identifier, 'original_prompt', e.prompt,
               'error', case when m.id is null then nullif(e.said, '') end))
    from ended e left join made m on m.task_id = e.id
    where e.requester is not null
    returning *
)
select array(select to_jsonb(t) from told t) as items,
       coalesce((select jsonb_agg(jsonb_build_object('issue_id', f.issue_id, 'user_type', 'member',
                     'user_id', f.user_id, 'reason', 'creator')) from followed f), '[]') as followers;
