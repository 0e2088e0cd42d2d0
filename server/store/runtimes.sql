-- Runtimes as daemons write them: registration, heartbeats, leaving, and what the sweeper finds.

-- name: beat
-- Signs of life, and what is asked of the runtimes in return: one statement for all of a daemon's.
-- Written only when the last one is older than $4, or the runtime was offline. A request is handed
-- out again when nothing came of it for $5: the answer may have been lost.
-- $1 runtimes, $2 user, $3 bound, $6 how many imports each takes at once
with runtime as (
    select r.id, r.workspace_id, r.status, r.last_seen_at, w.imports,
           coalesce($2::uuid, $3::uuid) is null or r.workspace_id = $3::uuid
           or exists (select from member m
                      where m.workspace_id = r.workspace_id and m.user_id = $2::uuid) as allowed
    from unnest($1::uuid[], $6::int[]) as w (id, imports)
    join agent_runtime r on r.id = w.id
), late as (
    -- locked in one order, since another socket may beat for some of them
    select r.id from agent_runtime r join runtime on runtime.id = r.id
    where runtime.allowed
      and (r.status <> 'online' or r.last_seen_at is null
           or r.last_seen_at < statement_timestamp() - $4::interval)
    order by r.id
    for no key update of r
), touched as (
    update agent_runtime r
    set last_seen_at = statement_timestamp(), status = 'online',
        updated_at = case when r.status = 'online' then r.updated_at
                          else statement_timestamp() end
    from late
    where r.id = late.id
), due as (
    select q.id, q.kind, runtime.imports,
           row_number() over (partition by q.runtime_id, q.kind order by q.created_at, q.id)
               as place
    from runtime join runtime_request q on q.runtime_id = runtime.id
    where runtime.allowed and q.status in ('pending', 'running') and not q.acknowledged
      and q.expires_at > statement_timestamp()
      and (q.handed_at is null or q.handed_at < statement_timestamp() - $5::interval)
), handed as (
    update runtime_request q
    set status = 'running', updated_at = statement_timestamp(),
        expires_at = case when q.handed_at is null then statement_timestamp() + q.run_limit
                          else q.expires_at end,
        handed_at = statement_timestamp()
    from due
    where q.id = due.id and due.place <= case when due.kind = 'import' then due.imports else 1 end
    returning q.id, q.runtime_id, q.kind, q.params, q.created_at
)
select id, workspace_id, allowed, status <> 'online' as came_back,
       (select jsonb_agg(jsonb_build_object('id', h.id, 'kind', h.kind, 'params', h.params)
                         order by h.created_at, h.id)
        from handed h where h.runtime_id = runtime.id) as requests
from runtime;

-- name: see_runtime
-- A runtime and the caller's right to it. $1 runtime, $2 user, $3 bound
select r.*,
       coalesce($2::uuid, $3::uuid) is null or r.workspace_id = $3::uuid
       or exists (select from member m
                  where m.workspace_id = r.workspace_id and m.user_id = $2::uuid) as allowed
from agent_runtime r
where r.id = $1;

-- name: see_workspace
-- A workspace and the caller's right to it; its repositories' passwords are for those who have a
-- machine here. $1 workspace, $2 user, $3 bound
select w.id, w.repos, w.settings,
       (select jsonb_object_agg(rc.url, rc.userinfo) from repository_credential rc
        where rc.workspace_id = w.id and exists (
            select from agent_runtime r where r.workspace_id = w.id
            and (r.owner_id = $2::uuid or $3::uuid is not null))) as credentials,
       coalesce($2::uuid, $3::uuid) is null or w.id = $3::uuid
       or exists (select from member m
                  where m.workspace_id = w.id and m.user_id = $2::uuid) as allowed
from workspace w
where w.id = $1;

-- name: see_issue
-- What garbage collection asks of an issue. $1 issue, $2 user, $3 bound
select i.status, i.updated_at,
       coalesce($2::uuid, $3::uuid) is null or i.workspace_id = $3::uuid
       or exists (select from member m
                  where m.workspace_id = i.workspace_id and m.user_id = $2::uuid) as allowed
from issue i
where i.id = $1;

-- name: see_chat
-- The same of a chat session.
select c.status, c.updated_at,
       coalesce($2::uuid, $3::uuid) is null or c.workspace_id = $3::uuid
       or exists (select from member m
                  where m.workspace_id = c.workspace_id and m.user_id = $2::uuid) as allowed
from chat_session c
where c.id = $1;

-- name: see_run
-- The same of an autopilot's run.
select r.status, r.completed_at,
       coalesce($2::uuid, $3::uuid) is null or p.workspace_id = $3::uuid
       or exists (select from member m
                  where m.workspace_id = p.workspace_id and m.user_id = $2::uuid) as allowed
from autopilot_run r join autopilot p on p.id = r.autopilot_id
where r.id = $1;

-- name: profiles
-- The workspace's own agent commands, oldest first; $2 also the disabled ones
select * from runtime_profile
where workspace_id = $1 and (enabled or $2::boolean)
order by created_at, id;

-- name: register
-- Agent programs found on a machine. $1 workspace, $2 daemon, $3 owner or null, $4 the programs
insert into agent_runtime (workspace_id, daemon_id, name, runtime_mode, provider, status,
                           device_info, metadata, owner_id, last_seen_at)
select $1, $2, x.name, 'local', x.provider, x.status, x.device_info, x.metadata, $3::uuid,
       statement_timestamp()
from jsonb_to_recordset($4::jsonb)
    as x (name text, provider text, status text, device_info text, metadata jsonb)
on conflict (workspace_id, daemon_id, provider) where profile_id is null do update
set name = excluded.name, runtime_mode = 'local', status = excluded.status,
    device_info = excluded.device_info, metadata = excluded.metadata,
    owner_id = coalesce(excluded.owner_id, agent_runtime.owner_id),
    last_seen_at = statement_timestamp(), updated_at = statement_timestamp()
returning *;

-- name: register_profiles
-- The same for programs of the workspace's own profiles, working or not.
insert into agent_runtime (workspace_id, daemon_id, name, runtime_mode, provider, status,
                           device_info, metadata, owner_id, profile_id, last_seen_at)
select $1, $2, x.name, 'local', x.provider, x.status, x.device_info, x.metadata, $3::uuid,
       x.profile_id, statement_timestamp()
from jsonb_to_recordset($4::jsonb)
    as x (name text, provider text, status text, device_info text, metadata jsonb,
          profile_id uuid)
on conflict (workspace_id, daemon_id, profile_id) where profile_id is not null do update
set name = excluded.name, runtime_mode = 'local', provider = excluded.provider,
    status = excluded.status, device_info = excluded.device_info, metadata = excluded.metadata,
    owner_id = coalesce(excluded.owner_id, agent_runtime.owner_id),
    last_seen_at = statement_timestamp(), updated_at = statement_timestamp()
returning *;

-- name: legacy
-- Rows of earlier ids of the same machine that are to become one of the new rows, locked.
-- $1 workspace, $2 the machine's earlier ids in lower case, $3 the new rows
select old.id, old.daemon_id, new.id as new_id
from agent_runtime old
join agent_runtime new on new.workspace_id = old.workspace_id and new.provider = old.provider
where old.workspace_id = $1 and lower(old.daemon_id) = any($2::text[])
  and old.profile_id is null and new.profile_id is null
  and new.id = any($3::uuid[]) and old.id <> all($3::uuid[])
order by old.id
for update of old;

-- name: merge_agents
-- $1 the old rows, $2 the new one for each
update agent a set runtime_id = m.new_id, updated_at = statement_timestamp()
from unnest($1::uuid[], $2::uuid[]) as m (id, new_id)
where a.runtime_id = m.id;

-- name: merge_tasks
update agent_task_queue t set runtime_id = m.new_id
from unnest($1::uuid[], $2::uuid[]) as m (id, new_id)
where t.runtime_id = m.id;

-- name: merge_names
-- The first identity that was merged into a row is remembered. $1 the new rows, $2 the old daemon id
-- for each
update agent_runtime r set legacy_daemon_id = m.daemon_id
from unnest($1::uuid[], $2::text[]) as m (new_id, daemon_id)
where r.id = m.new_id and r.legacy_daemon_id is null;

-- name: delete_merged
delete from agent_runtime where id = any($1::uuid[]);

-- name: deregister
-- $1 runtimes, $2 user, $3 bound; those the caller may not touch are skipped
update agent_runtime r set status = 'offline', updated_at = statement_timestamp()
where r.id = any($1::uuid[])
  and (r.workspace_id = $3::uuid
       or exists (select from member m
                  where m.workspace_id = r.workspace_id and m.user_id = $2::uuid))
returning r.id, r.workspace_id;
