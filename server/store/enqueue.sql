-- How tasks come into the queue.

-- name: candidates
-- The agents that targets stand for, and what decides whether they get a task. A target without an
-- agent (unknown, foreign, an archived squad) has no row. $1 workspace, $2 an array of
-- {issue_id, kind, id}, $3 the user or agent whose right to private agents is checked or null, $4 a comment
-- whose tasks do not count as pending or null
with asked as (
    select distinct * from jsonb_to_recordset($2::jsonb) as x (issue_id uuid, kind text, id uuid)
), target as (
    select issue_id, kind, id, id as agent_id from asked where kind = 'agent'
    union all
    select x.issue_id, x.kind, x.id, s.leader_id
    from asked x
    join squad s on s.id = x.id
    where x.kind = 'squad' and s.workspace_id = $1 and s.archived_at is null
)
select t.issue_id, t.kind, t.id as target_id, a.id as agent_id, a.name, a.avatar_url,
       a.archived_at is not null as archived, r.status = 'online' as online,
       coalesce(r.metadata ->> 'cli_version', '') as cli_version,
       may_use_agent(a.id, a.visibility, a.owner_id, a.workspace_id, $3::uuid) as open,
       exists (select from agent_task_queue q
               where q.issue_id = t.issue_id and q.agent_id = a.id
                 and q.status in ('queued', 'dispatched')
                 and ($4::uuid is null or q.trigger_comment_id is distinct from $4::uuid))
           as pending,
       coalesce((select q.is_leader_task from agent_task_queue q
                 where q.issue_id = t.issue_id and q.agent_id = a.id
                 order by q.created_at desc
                 limit 1), false) as led_last
from target t
join agent a on a.id = t.agent_id and a.workspace_id = $1
join agent_runtime r on r.id = a.runtime_id;

-- name: enqueue
-- Tasks on issues, one for each agent that has none pending there, which the unique index decides. What
-- a person starts also ends a pause. $1 workspace, $2 an array of {issue_id, agent_id, leads, priority,
-- comment_id, summary, depth}: whether the agent leads a squad, the comment it answers, how many runs
-- of agents led to this. $3 type and $4 id of who asks, $5 handoff note, $6 a fresh session
with wanted as (
    select * from rows from (jsonb_to_recordset($2::jsonb)
        as (issue_id uuid, agent_id uuid, leads boolean, priority int, comment_id uuid,
            summary text, depth int)) with ordinality
        as w (issue_id, agent_id, leads, priority, comment_id, summary, depth, place)
), resumed as (
    update issue i set runs_paused_at = null, runs_resumed_at = statement_timestamp()
    where i.id in (select issue_id from wanted) and i.runs_paused_at is not null
      and $3::text <> 'agent'
)
insert into agent_task_queue (workspace_id, agent_id, runtime_id, issue_id, is_leader_task,
    priority, trigger_comment_id, trigger_summary, initiator_type, initiator_id, handoff_note,
    force_fresh_session, depth)
select a.workspace_id, a.id, a.runtime_id, w.issue_id, w.leads, w.priority, w.comment_id,
       nullif(w.summary, ''), $3, $4, nullif($5::text, ''), $6, w.depth
from wanted w
join agent a on a.id = w.agent_id
where a.workspace_id = $1 and a.archived_at is null
order by w.place
on conflict (issue_id, agent_id) where status in ('queued', 'dispatched') do nothing
returning *;

-- name: replied_to
-- What a reply answers, and whether $2 has answered there before.
select p.author_type, p.content,
       exists (select from comment c
               where c.parent_id = p.id and c.author_type = 'agent' and c.author_id = $2::uuid)
           as answered
from comment p
where p.id = $1;

-- name: task_on
-- The task an agent is at work on, if it is on this issue. $1 task, $2 issue
select id from agent_task_queue where id = $1 and issue_id = $2;

-- name: issue_of_task
select issue_id from agent_task_queue where id = $1;

-- name: issues_facts
-- Issues as the rules see them, for previews; in the order asked. $1 workspace, $2 issues
select i.id, i.workspace_id, i.status, i.priority, i.assignee_type, i.assignee_id
from unnest($2::uuid[]) with ordinality as w (id, place)
join issue i on i.id = w.id
where i.workspace_id = $1
order by w.place;

-- name: caused
-- How much agents have set agents to work of late, by issue. $1 an array of {issue_id, agents}: the
-- agents next in line there, $2 the task of the agent that asks or null, $3 since when
select i.id as issue_id, i.runs_paused_at is not null as paused,
       coalesce((select q.depth from agent_task_queue q where q.id = $2::uuid), 0) + 1 as depth,
       (select count(*) from agent_task_queue q
        where q.issue_id = i.id and q.initiator_type = 'agent'
          and q.created_at > greatest(statement_timestamp() - $3::interval, i.runs_resumed_at))
           as on_issue,
       coalesce((select max(n) from (
           select count(*) as n from agent_task_queue q
           where q.agent_id = any(x.agents) and q.initiator_type = 'agent'
             and q.created_at > greatest(statement_timestamp() - $3::interval, i.runs_resumed_at)
           group by q.agent_id) x), 0) as by_agent
from jsonb_to_recordset($1::jsonb) as x (issue_id uuid, agents uuid[])
join issue i on i.id = x.issue_id;

-- name: pause_runs
-- Agents start nothing more on issues until a person has looked; their people are told, once. They
-- are who made it and who it is assigned to, or else the workspace's owners. $1 an array of {issue_id,
-- text, reason}: what the comment says, and why
with paused as (
    update issue i set runs_paused_at = statement_timestamp()
    from jsonb_to_recordset($1::jsonb) as x (issue_id uuid, text text, reason text)
    where i.id = x.issue_id and i.runs_paused_at is null
    returning i.*, x.text, x.reason
), posted as (
    insert into comment (issue_id, workspace_id, author_type, author_id, content, type)
    select p.id, p.workspace_id, 'system', '00000000-0000-0000-0000-000000000000', p.text, 'system'
    from paused p
    returning *
), near as (
    select p.id, m.user_id
    from paused p
    join member m on m.workspace_id = p.workspace_id
    where (p.creator_type = 'member' and m.user_id = p.creator_id)
       or (p.assignee_type = 'member' and m.user_id = p.assignee_id)
), told as (
    insert into inbox_item (workspace_id, recipient_type, recipient_id, type, severity, issue_id,
                            title, body, actor_type, details)
    select p.workspace_id, 'member', m.user_id, 'runs_paused', 'attention', p.id, p.title, p.text,
           'system', jsonb_build_object('reason', p.reason)
    from paused p
    join member m on m.workspace_id = p.workspace_id
    where exists (select from near n where n.id = p.id and n.user_id = m.user_id)
       or (m.role = 'owner' and not exists (select from near n where n.id = p.id))
    returning *
)
select p.title, p.status,
       (select to_jsonb(x) from posted x where x.issue_id = p.id) as comment,
       array(select to_jsonb(x) from told x where x.issue_id = p.id) as items
from paused p
order by p.id;

-- name: resume_runs
-- A person had their say. $1 issue
update issue set runs_paused_at = null, runs_resumed_at = statement_timestamp()
where id = $1 and runs_paused_at is not null;

-- name: lock_parents
-- Parents that may be told of their children: open, out of the backlog, and not a person's. Locked:
-- of two children that finish apart, the second sees the first. $1 parents
select i.id, i.workspace_id, i.number, i.title, i.status, i.priority, i.assignee_type, i.assignee_id,
       coalesce(a.name, s.name) as assignee_name
from issue i
left join agent a on i.assignee_type = 'agent' and a.id = i.assignee_id
left join squad s on i.assignee_type = 'squad' and s.id = i.assignee_id
where i.id = any($1::uuid[]) and i.status not in ('done', 'cancelled', 'backlog')
  and i.assignee_type is distinct from 'member'
order by i.id
for no key update of i;

-- name: stages
-- The children of parents by stage: how many, and how many are closed. $1 parents
select parent_issue_id as parent_id, stage, count(*) as total,
       count(*) filter (where status in ('done', 'cancelled')) as closed
from issue
where parent_issue_id = any($1::uuid[])
group by parent_issue_id, stage
order by parent_issue_id, stage nulls last;

-- name: post_system
-- Comments of the server's own. $1 an array of {issue_id, workspace_id, content}
insert into comment (issue_id, workspace_id, author_type, author_id, content, type)
select x.issue_id, x.workspace_id, 'system', '00000000-0000-0000-0000-000000000000', x.content,
       'system'
from jsonb_to_recordset($1::jsonb) as x (issue_id uuid, workspace_id uuid, content text)
returning *;

-- name: leader_of
-- The agent that leads a squad.
select leader_id from squad where id = $1;

-- name: leaders_of
-- The agents that lead squads. $1 squads
select id, leader_id from squad where id = any($1::uuid[]);

-- name: evaluate
-- What a squad's leader made of its turn. $1 workspace, $2 issue, $3 agent, $4 details
insert into activity_log (workspace_id, issue_id, actor_type, actor_id, action, details)
values ($1, $2, 'agent', $3, 'squad_leader_evaluated', $4)
returning *;

-- name: waiting
-- The next task that waits for an agent, and where it is to run.
select t.id, a.runtime_id
from agent a
join agent_task_queue t on t.agent_id = a.id and t.status = 'queued'
where a.id = $1 and a.archived_at is null
  and (t.not_before is null or t.not_before <= statement_timestamp())
order by t.priority desc, t.created_at
limit 1;
