-- How tasks come into the queue.

-- name: enqueue
-- A task on an issue for each agent that can take one: not archived, open to the user who asks,
-- and with none pending there already, which the unique index decides. Agents that set each other
-- to work are stopped after $13 tasks an hour. $1 workspace, $2 issue, $3 agents, $4 priority,
-- $5 trigger comment, $6 its summary, $7 type and $8 id of who asks, $9 the user whose right to
-- private agents is checked or null, $10 handoff note, $11 a fresh session, $12 in leader role
insert into agent_task_queue (workspace_id, agent_id, runtime_id, issue_id, priority,
    trigger_comment_id, trigger_summary, initiator_type, initiator_id, handoff_note,
    force_fresh_session, is_leader_task)
select a.workspace_id, a.id, a.runtime_id, $2, $4, $5, nullif($6::text, ''), $7, $8,
       nullif($10::text, ''), $11, $12
from unnest($3::uuid[]) with ordinality as w (agent_id, place)
join agent a on a.id = w.agent_id
where a.workspace_id = $1 and a.archived_at is null
  and (a.visibility <> 'private' or $9::uuid is null or a.owner_id = $9::uuid
       or exists (select from member m
                  where m.workspace_id = $1 and m.user_id = $9::uuid
                    and m.role in ('owner', 'admin')))
  and ($7::text <> 'agent'
       or (select count(*) from agent_task_queue q
           where q.issue_id = $2 and q.initiator_type = 'agent'
             and q.created_at > statement_timestamp() - interval '1 hour') < $13)
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
