-- A workspace's own agent commands, and tokens for its machines (spec 02 §10.2, 01 §2.1).

-- name: get_profile
select * from runtime_profile where workspace_id = $1 and id = $2;

-- name: lock_profile
select * from runtime_profile where workspace_id = $1 and id = $2 for update;

-- name: create_profile
-- No row when the name is taken.
insert into runtime_profile (workspace_id, display_name, protocol_family, command_name,
                             description, fixed_args, enabled, created_by)
values ($1, $2, $3, $4, $5, $6, $7, $8)
on conflict (workspace_id, display_name) do nothing
returning *;

-- name: update_profile
-- $2 is an object of new values; absent keys stay.
update runtime_profile set
    display_name = coalesce($2::jsonb ->> 'display_name', display_name),
    command_name = coalesce($2::jsonb ->> 'command_name', command_name),
    description = coalesce($2::jsonb ->> 'description', description),
    fixed_args = coalesce($2::jsonb -> 'fixed_args', fixed_args),
    enabled = coalesce(($2::jsonb ->> 'enabled')::boolean, enabled),
    updated_at = now()
where id = $1
returning *;

-- name: profile_in_use
-- What keeps a profile: agents that work on one of its instances, squads that an archived agent on
-- one still leads. $1 profile. Its instances are locked: no agent is bound to them meanwhile.
with instance as (
    select id from agent_runtime where profile_id = $1 order by id for update
)
select array(select a.name from agent a
             where a.runtime_id in (select id from instance) and a.archived_at is null
             order by a.name) as agents,
       array(select s.name from squad s join agent a on a.id = s.leader_id
             where a.runtime_id in (select id from instance) and s.archived_at is null
             order by s.name) as squads;

-- name: drop_agents
-- The archived agents of a profile's instances, after what refers to them. $1 profile
with doomed as (
    select a.id from agent a join agent_runtime r on r.id = a.runtime_id where r.profile_id = $1
), paused as (
    update autopilot p set status = 'paused', updated_at = now()
    from doomed d
    where p.assignee_type = 'agent' and p.assignee_id = d.id and p.status = 'active'
)
delete from squad s using doomed d where s.leader_id = d.id and s.archived_at is not null;

-- name: drop_instances_agents
delete from agent a using agent_runtime r where r.id = a.runtime_id and r.profile_id = $1;

-- name: drop_instances
delete from agent_runtime where profile_id = $1;

-- name: drop_profile
delete from runtime_profile where id = $1;

-- name: active_on_instances
select t.id from agent_task_queue t join agent_runtime r on r.id = t.runtime_id
where r.profile_id = $1 and t.status in ('queued', 'dispatched', 'waiting_local_directory', 'running')
order by t.id;

-- name: list_tokens
select id, daemon_id, name, created_by, expires_at, created_at from daemon_token
where workspace_id = $1 and expires_at > now()
order by created_at desc, id;

-- name: machine_owner
-- Who owns a machine, if anybody does. $1 workspace, $2 daemon
select u.id as owner_id, u.name from app_user u
where u.id = coalesce(
    (select k.owner_id from machine k where k.workspace_id = $1 and k.daemon_id = $2),
    (select r.owner_id from agent_runtime r
     where r.workspace_id = $1 and r.daemon_id = $2 and r.owner_id is not null limit 1));

-- name: create_token
insert into daemon_token (workspace_id, daemon_id, name, token_hash, created_by, expires_at)
values ($1, $2, $3, $4, $5, now() + $6::int * interval '1 day')
returning id, daemon_id, name, created_by, expires_at, created_at;

-- name: delete_token
delete from daemon_token where workspace_id = $1 and id = $2 returning token_hash;
