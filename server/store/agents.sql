-- Agents and the runtimes they are bound to, for the user API (spec 02 §1.2, §1.3, §10.4).

-- name: list_agents
-- Oldest first. $3: who looks (null = whoever may see all).
select a.*, agent_skills(a.id) as skills,
    coalesce(w.settings->'always_redact_env' = 'true', false) as redact_always
from agent a join workspace w on w.id = a.workspace_id
where a.workspace_id = $1
    and ($2 or a.archived_at is null)
    and may_use_agent(a.id, a.visibility, a.owner_id, a.workspace_id, $3::uuid)
order by a.created_at, a.id
limit 1000;

-- name: get_agent
-- $3: who looks; `open` says whether they may.
select a.*, agent_skills(a.id) as skills,
    may_use_agent(a.id, a.visibility, a.owner_id, a.workspace_id, $3::uuid) as open,
    coalesce(w.settings->'always_redact_env' = 'true', false) as redact_always
from agent a join workspace w on w.id = a.workspace_id
where a.workspace_id = $1 and a.id = $2;

-- name: lock_agent
-- As get_agent, and nobody else changes or archives it until this transaction ends.
select a.*, agent_skills(a.id) as skills,
    coalesce(w.settings->'always_redact_env' = 'true', false) as redact_always,
    r.provider, r.visibility as runtime_visibility, r.owner_id as runtime_owner
from agent a
    join workspace w on w.id = a.workspace_id
    join agent_runtime r on r.id = a.runtime_id
where a.workspace_id = $1 and a.id = $2
for no key update of a;

-- name: create_agent
-- No row when the name is taken. A new agent is idle if its runtime is there, else offline.
insert into agent (workspace_id, name, description, instructions, avatar_url, runtime_mode,
    runtime_id, runtime_config, custom_env, custom_args, mcp_config, model, thinking_level,
    visibility, status, max_concurrent_tasks, owner_id)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, nullif($12, ''), nullif($13, ''), $14,
    case when $15 then 'idle' else 'offline' end, $16, $17)
on conflict on constraint agent_workspace_name_unique do nothing
returning *, agent_skills(id) as skills, (
    select coalesce(w.settings->'always_redact_env' = 'true', false)
    from workspace w where w.id = agent.workspace_id
) as redact_always;

-- name: update_agent
-- Change only what was sent: $2 is an object of new values, absent keys stay as they are now.
update agent set
    name = case when $2::jsonb ? 'name' then $2->>'name' else name end,
    description = case when $2::jsonb ? 'description' then $2->>'description' else description end,
    instructions = case when $2::jsonb ? 'instructions'
        then $2->>'instructions' else instructions end,
    avatar_url = case when $2::jsonb ? 'avatar_url' then $2->>'avatar_url' else avatar_url end,
    runtime_id = case when $2::jsonb ? 'runtime_id'
        then ($2->>'runtime_id')::uuid else runtime_id end,
    placed_under = case when $2::jsonb ? 'runtime_id' then null else placed_under end,
    runtime_mode = case when $2::jsonb ? 'runtime_mode'
        then $2->>'runtime_mode' else runtime_mode end,
    runtime_config = case when $2::jsonb ? 'runtime_config'
        then $2->'runtime_config' else runtime_config end,
    custom_args = case when $2::jsonb ? 'custom_args' then $2->'custom_args' else custom_args end,
    mcp_config = case when $2::jsonb ? 'mcp_config'
        then nullif($2->'mcp_config', 'null') else mcp_config end,
    visibility = case when $2::jsonb ? 'visibility' then $2->>'visibility' else visibility end,
    status = case when $2::jsonb ? 'status' then $2->>'status' else status end,
    max_concurrent_tasks = case when $2::jsonb ? 'max_concurrent_tasks'
        then ($2->>'max_concurrent_tasks')::int else max_concurrent_tasks end,
    model = case when $2::jsonb ? 'model' then nullif($2->>'model', '') else model end,
    thinking_level = case when $2::jsonb ? 'thinking_level'
        then nullif($2->>'thinking_level', '') else thinking_level end,
    updated_at = now()
where id = $1
returning *, agent_skills(id) as skills, (
    select coalesce(w.settings->'always_redact_env' = 'true', false)
    from workspace w where w.id = agent.workspace_id
) as redact_always;

-- name: archive_agent
-- No row when it is archived already.
update agent set archived_at = now(), archived_by = $2, updated_at = now()
where id = $1 and archived_at is null
returning *, agent_skills(id) as skills, (
    select coalesce(w.settings->'always_redact_env' = 'true', false)
    from workspace w where w.id = agent.workspace_id
) as redact_always;

-- name: restore_agent
-- No row when it is not archived.
update agent set archived_at = null, archived_by = null, updated_at = now()
where id = $1 and archived_at is not null
returning *, agent_skills(id) as skills, (
    select coalesce(w.settings->'always_redact_env' = 'true', false)
    from workspace w where w.id = agent.workspace_id
) as redact_always;

-- name: list_runtimes
-- Oldest first; $2 keeps one owner's.
select * from agent_runtime
where workspace_id = $1 and ($2::uuid is null or owner_id = $2)
order by created_at, id
limit 1000;

-- name: hold_runtime
-- It cannot be deleted until this transaction ends; others may bind agents to it too.
select * from agent_runtime where workspace_id = $1 and id = $2 for key share;

-- name: lock_runtime
-- Nobody binds an agent to it (that takes a key share) until this transaction ends.
select * from agent_runtime where workspace_id = $1 and id = $2 for update;

-- name: runs_on
-- Whether an agent runs on a runtime. $1 agent, $2 runtime
select id from agent where id = $1 and runtime_id = $2;

-- name: change_runtime
-- $1 runtime, $2 an object of new values; null clears a name, absent keys stay
update agent_runtime
set visibility = coalesce($2::jsonb ->> 'visibility', visibility),
    custom_name = case when $2::jsonb ? 'custom_name' then $2 ->> 'custom_name'
                       else custom_name end,
    updated_at = now()
where id = $1
returning *;

-- name: agents_on_runtime
-- The agents that still work on a runtime.
select a.*, agent_skills(a.id) as skills, true as redact_always
from agent a
where a.runtime_id = $1 and a.archived_at is null
order by a.created_at, a.id
limit 1000;

-- name: archive_on_runtime
-- Archive the agents that still work on a runtime.
update agent set archived_at = now(), archived_by = $2, updated_at = now()
where runtime_id = $1 and archived_at is null
returning *, agent_skills(id) as skills, true as redact_always;

-- name: active_on_runtime
-- What would go down with a runtime: its own tasks, and those of the agents bound to it.
select t.id from agent_task_queue t join agent a on a.id = t.agent_id
where (t.runtime_id = $1 or a.runtime_id = $1)
    and t.status in ('queued', 'dispatched', 'waiting_local_directory', 'running')
order by t.id
limit 10000;

-- name: squads_led_from
-- Squads in use whose leader is bound to a runtime.
select s.name from squad s join agent a on a.id = s.leader_id
where a.runtime_id = $1 and s.archived_at is null
order by s.name
limit 10;

-- name: delete_archived_squads
-- Squads nobody uses any more, which would keep their leader from being deleted.
delete from squad s using agent a
where a.id = s.leader_id and a.runtime_id = $1 and s.archived_at is not null;

-- name: pause_autopilots
-- What starts by itself and would be done on a runtime. Returns what changed.
update autopilot p set status = 'paused', updated_at = now()
from agent a
where p.assignee_type = 'agent' and p.assignee_id = a.id and a.runtime_id = $1
  and p.workspace_id = a.workspace_id and p.status = 'active'
returning p.id;

-- name: delete_archived_agents
delete from agent where runtime_id = $1 and archived_at is not null;

-- name: delete_runtime
delete from agent_runtime where id = $1;

-- name: environment
select custom_env from agent where id = $1;

-- name: set_environment
update agent set custom_env = $2, updated_at = now() where id = $1;

-- name: record_access
-- $1 workspace, $2 who, $3 what was done, $4 to which names; never a value
insert into activity_log (workspace_id, actor_type, actor_id, action, details)
values ($1, 'member', $2, $3, $4);
