-- Runtimes as daemons write them: registration, heartbeats, leaving, and what the sweeper finds.

-- name: beat
-- Signs of life, and what is asked of the runtimes in return: one statement for all of a daemon's.
-- Written only when the last one is older than $4, or the runtime was offline. A request is handed
-- out again when nothing came of it for $5: the answer may have been lost.
-- $1 runtimes, $2 user, $3 bound, $6 how many imports each takes at once
with runtime as (
    select r.id, r.workspace_id, r.status, r.last_seen_at, w.imports,
           {own r} as allowed
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
       {own r} as allowed
from agent_runtime r
where r.id = $1;

-- name: see_workspace
-- A workspace and the caller's right to it; its repositories' passwords are for those who have a
-- machine here. $1 workspace, $2 user, $3 bound
select w.id, w.repos, w.settings,
       (select jsonb_object_agg(rc.url, rc.userinfo) from repository_credential rc
        where rc.workspace_id = w.id and exists (
            select from agent_runtime r
            where r.workspace_id = w.id and {own r})) as credentials,
       {here w.id} as allowed
from workspace w
where w.id = $1;

-- name: see_issue
-- What garbage collection asks of an issue. $1 issue, $2 user, $3 bound
select i.status, i.updated_at,
       {here i.workspace_id} as allowed
from issue i
where i.id = $1;

-- name: see_chat
-- The same of a chat session: told to who talks there, and to the machine that worked for it.
select c.status, c.updated_at,
       case when {here c.workspace_id} then (
           ($3::text[] is null and c.creator_id = $2::uuid)
           or exists (select from agent_task_queue t join agent_runtime r on r.id = t.runtime_id
                      where t.chat_session_id = c.id and {own r})) end as allowed
from chat_session c
where c.id = $1;

-- name: see_run
-- The same of an autopilot's run: told to the machine that worked for it.
select a.status, a.completed_at,
       case when {here p.workspace_id} then exists (
           select from agent_task_queue t join agent_runtime r on r.id = t.runtime_id
           where t.autopilot_run_id = a.id and {own r}) end as allowed
from autopilot_run a join autopilot p on p.id = a.autopilot_id
where a.id = $1;

-- name: profiles
-- The workspace's own agent commands, oldest first; $2 also the disabled ones
select * from runtime_profile
where workspace_id = $1 and (enabled or $2::boolean)
order by created_at, id;

-- name: hold_machine
-- A machine, locked, made if it is new; then it is the caller's, unless runtimes of its are there from
-- before, or of an id that only differs in case: they say whose it is. Its owner's key replaces the
-- one that is kept, nobody else's does.
-- $1 workspace, $2 daemon, $3 the caller or null, $4 a hash of the machine's key or null
insert into machine as k (workspace_id, daemon_id, owner_id, key_hash)
select $1, $2, case when old.id is null then $3::uuid else old.owner_id end,
       case when old.id is null or old.owner_id = $3::uuid then $4::text end
from (select) as one
left join lateral (
    select r.id, r.owner_id from agent_runtime r
    where r.workspace_id = $1 and machine_key(r.daemon_id) = machine_key($2)
    order by r.daemon_id <> $2, r.owner_id is null, r.last_seen_at desc nulls last, r.id
    limit 1
) old on true
on conflict (workspace_id, daemon_id) do update
set key_hash = case when k.owner_id = $3::uuid then coalesce(excluded.key_hash, k.key_hash)
                    else k.key_hash end
returning k.owner_id, k.key_hash,
          (select u.name from app_user u where u.id = k.owner_id) as owner_name,
          exists (select from member m
                  where m.workspace_id = k.workspace_id and m.user_id = k.owner_id) as owner_here;

-- name: runtimes_of_machine
-- Locked. $1 workspace, $2 daemon
select * from agent_runtime where workspace_id = $1 and daemon_id = $2 order by id for update;

-- name: in_flight_there
-- $1 runtimes
select id from agent_task_queue
where runtime_id = any($1::uuid[])
  and status in ('dispatched', 'waiting_local_directory', 'running')
order by id;

-- name: move_machine
-- Somebody else's from now on, and private until they open it. $1 workspace, $2 daemon, $3 new owner,
-- $4 a hash of its key or null
with machine as (
    update machine set owner_id = $3, key_hash = $4, updated_at = statement_timestamp()
    where workspace_id = $1 and daemon_id = $2
)
update agent_runtime
set owner_id = $3, visibility = 'private', updated_at = statement_timestamp()
where workspace_id = $1 and daemon_id = $2
returning *;

-- name: leave_agents
-- Agents of other people on a machine that changes hands get no work there from now on. $1 runtimes,
-- $2 the machine's new owner, $3 the one before, or null
update agent a
set placed_under = coalesce(a.placed_under, $3::uuid, '00000000-0000-0000-0000-000000000000'),
    updated_at = statement_timestamp()
where a.runtime_id = any($1::uuid[]) and a.owner_id is distinct from $2::uuid
returning a.id, a.name, a.owner_id, a.archived_at is null as active;

-- name: give_agents
-- The agents of a machine's owner go along with it, as they consented. $1 runtimes, $2 new owner, $3
-- the one before
update agent a set owner_id = $2, placed_under = null, updated_at = statement_timestamp()
where a.runtime_id = any($1::uuid[]) and a.owner_id = $3::uuid
returning a.id, a.name;

-- name: drop_directories
-- Directories that were named for a machine by somebody who does not own it any more. $1 workspace,
-- $2 daemon, $3 its owner
delete from project_resource
where workspace_id = $1 and resource_type = 'local_directory'
  and machine_key(resource_ref ->> 'daemon_id') = machine_key($2) and created_by is distinct from $3::uuid
returning id, project_id, resource_ref ->> 'local_path' as local_path;

-- name: give_directories
-- $1 workspace, $2 daemon, $3 new owner, $4 the one before
update project_resource set created_by = $3
where workspace_id = $1 and resource_type = 'local_directory'
  and machine_key(resource_ref ->> 'daemon_id') = machine_key($2) and created_by = $4::uuid;

-- name: end_access
-- What others could still do at a machine that is somebody else's now: its tokens, and those of tasks
-- that ran there for the owner before. $1 workspace, $2 daemon, $3 new owner, $4 its runtimes
with tasks as (
    delete from task_token k using agent_task_queue t
    where t.id = k.task_id and t.runtime_id = any($4::uuid[]) and k.user_id <> $3::uuid
    returning k.token_hash
), machines as (
    delete from daemon_token
    where workspace_id = $1 and daemon_id = $2 and created_by is distinct from $3::uuid
    returning token_hash
)
select token_hash from tasks union all select token_hash from machines;

-- name: new_owner
-- A member by id or address. $1 workspace, $2 id or null, $3 address or null
select u.id, u.name, u.email from member m join app_user u on u.id = m.user_id
where m.workspace_id = $1 and (u.id = $2::uuid or lower(u.email) = lower($3::text));

-- name: register
-- Agent programs found on a machine. $1 workspace, $2 daemon, $3 owner or null, $4 the programs
insert into agent_runtime (workspace_id, daemon_id, name, runtime_mode, provider, status,
                           device_info, metadata, owner_id, last_seen_at)
select $1, $2, x.name, 'local', x.provider, x.status, x.device_info, x.metadata, $3::uuid,
       statement_timestamp()
from jsonb_to_recordset($4::jsonb)
    as x (name text, provider text, status text, device_info text, metadata jsonb)
order by x.provider
on conflict (workspace_id, daemon_id, provider) where profile_id is null do update
set name = excluded.name, runtime_mode = 'local', status = excluded.status,
    device_info = excluded.device_info, metadata = excluded.metadata,
    owner_id = excluded.owner_id,
    last_seen_at = statement_timestamp(), updated_at = statement_timestamp()
returning *, (select old.status from agent_runtime old where old.id = agent_runtime.id) as was;

-- name: register_profiles
-- The same for programs of the workspace's own profiles, working or not.
insert into agent_runtime (workspace_id, daemon_id, name, runtime_mode, provider, status,
                           device_info, metadata, owner_id, profile_id, last_seen_at)
select $1, $2, x.name, 'local', x.provider, x.status, x.device_info, x.metadata, $3::uuid,
       x.profile_id, statement_timestamp()
from jsonb_to_recordset($4::jsonb)
    as x (name text, provider text, status text, device_info text, metadata jsonb,
          profile_id uuid)
order by x.profile_id
on conflict (workspace_id, daemon_id, profile_id) where profile_id is not null do update
set name = excluded.name, runtime_mode = 'local', provider = excluded.provider,
    status = excluded.status, device_info = excluded.device_info, metadata = excluded.metadata,
    owner_id = excluded.owner_id,
    last_seen_at = statement_timestamp(), updated_at = statement_timestamp()
returning *, (select old.status from agent_runtime old where old.id = agent_runtime.id) as was;

-- name: legacy
-- Rows of earlier ids of the same machine that are to become one of the new rows, locked: only those
-- of the same owner, since an id is no secret. $1 workspace, $2 the machine's earlier ids, $3 the new
-- rows
select old.id, old.daemon_id, new.id as new_id
from agent_runtime old
join agent_runtime new on new.workspace_id = old.workspace_id and new.provider = old.provider
where old.workspace_id = $1 and machine_key(old.daemon_id) in (
      select machine_key(named.id) from unnest($2::text[]) as named (id))
  and old.profile_id is null and new.profile_id is null and old.owner_id = new.owner_id
  and new.id = any($3::uuid[]) and old.id <> all($3::uuid[])
order by old.id
for update of old;

-- name: hold_agents
-- What is bound to some runtimes, locked in everybody's order (see finish.sql). $1 runtimes
select id from agent where runtime_id = any($1::uuid[]) order by id for no key update;

-- name: hold_tasks
select id from agent_task_queue where runtime_id = any($1::uuid[])
order by agent_id, id for no key update;

-- name: merge_agents
-- $1 the old rows, $2 the new one for each
update agent a set runtime_id = m.new_id, updated_at = statement_timestamp()
from unnest($1::uuid[], $2::uuid[]) as m (id, new_id)
where a.runtime_id = m.id;

-- name: merge_tasks
-- With the chats whose agents left off there.
with chats as (
    update chat_session c set runtime_id = m.new_id
    from unnest($1::uuid[], $2::uuid[]) as m (id, new_id)
    where c.runtime_id = m.id
)
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

-- name: forget_merged
-- Earlier ids that no runtime has any more are nobody's. $1 workspace, $2 the ids
delete from machine k
where k.workspace_id = $1 and k.daemon_id = any($2::text[])
  and not exists (select from agent_runtime r
                  where r.workspace_id = k.workspace_id and r.daemon_id = k.daemon_id);

-- name: deregister
-- $1 runtimes, $2 user, $3 bound; those the caller may not touch are skipped
update agent_runtime r set status = 'offline', updated_at = statement_timestamp()
where r.id = any($1::uuid[]) and {own r}
returning r.id, r.workspace_id;
