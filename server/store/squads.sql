-- Squads: a leader and members (spec 02 §1.3, 06 §11).

-- name: list_squads
-- Those that are not archived, oldest first; $2 one of them, archived or not. $1 workspace
select s.*, (select count(*) from squad_member m where m.squad_id = s.id) as member_count,
       coalesce((select jsonb_agg(jsonb_build_object('member_type', m.member_type,
                     'member_id', m.member_id, 'role', m.role) order by m.created_at, m.id)
                 from (select * from squad_member m where m.squad_id = s.id
                       order by m.created_at, m.id limit 3) m), '[]') as member_preview
from squad s
where s.workspace_id = $1 and case when $2::uuid is null then s.archived_at is null
                                   else s.id = $2 end
order by s.created_at, s.id
limit 1000;

-- name: lock_squad
select * from squad where workspace_id = $1 and id = $2 for no key update;

-- name: name_taken
-- Whether another squad that is not archived has the name. $1 workspace, $2 name, $3 this one
select exists (select from squad where workspace_id = $1 and lower(name) = lower($2)
               and archived_at is null and id is distinct from $3::uuid);

-- name: hold_agent
-- An agent of the workspace that works; it is not deleted until this transaction ends.
select id from agent where workspace_id = $1 and id = $2 and archived_at is null for key share;

-- name: create_squad
with made as (
    insert into squad (workspace_id, name, description, avatar_url, leader_id, creator_id,
                       instructions)
    values ($1, $2, $3, $4, $5, $6, $7)
    returning *
), led as (
    insert into squad_member (squad_id, member_type, member_id, role)
    select id, 'agent', leader_id, 'leader' from made
)
select id from made;

-- name: update_squad
-- $2 is an object of new values; a new leader becomes a member.
with changed as (
    update squad set
        name = coalesce($2::jsonb ->> 'name', name),
        description = coalesce($2::jsonb ->> 'description', description),
        instructions = coalesce($2::jsonb ->> 'instructions', instructions),
        avatar_url = case when $2::jsonb ? 'avatar_url'
            then nullif($2::jsonb ->> 'avatar_url', '') else avatar_url end,
        leader_id = coalesce(($2::jsonb ->> 'leader_id')::uuid, leader_id),
        updated_at = now()
    where id = $1
    returning *
)
insert into squad_member (squad_id, member_type, member_id, role)
select id, 'agent', leader_id, 'leader' from changed
on conflict (squad_id, member_type, member_id) do nothing;

-- name: archive_squad
-- Its issues and autopilots go to the leader. Returns the issues that changed hands.
with archived as (
    update squad set archived_at = now(), archived_by = $2, updated_at = now()
    where id = $1
    returning id, leader_id
), handed as (
    update issue i set assignee_type = 'agent', assignee_id = a.leader_id, updated_at = now()
    from archived a
    where i.assignee_type = 'squad' and i.assignee_id = a.id
    returning i.id
), piloted as (
    update autopilot p set assignee_type = 'agent', assignee_id = a.leader_id, updated_at = now()
    from archived a
    where p.assignee_type = 'squad' and p.assignee_id = a.id
)
select id from handed order by id;

-- name: list_members
select * from squad_member where squad_id = $1 order by created_at, id;

-- name: member_exists
-- Whether an agent or person of the workspace can be a member. $1 workspace, $2 type, $3 id
select case $2::text
    when 'agent' then exists (select from agent where workspace_id = $1 and id = $3)
    else exists (select from member where workspace_id = $1 and user_id = $3) end;

-- name: add_member
insert into squad_member (squad_id, member_type, member_id, role) values ($1, $2, $3, $4)
on conflict (squad_id, member_type, member_id) do nothing
returning *;

-- name: remove_member
delete from squad_member where squad_id = $1 and member_type = $2 and member_id = $3 returning id;

-- name: set_role
update squad_member set role = $4
where squad_id = $1 and member_type = $2 and member_id = $3
returning *;

-- name: member_status
-- What each member is doing. $1 squad
select m.member_type, m.member_id,
       case when m.member_type <> 'agent' then null
            when a.archived_at is not null then 'archived'
            when exists (select from agent_task_queue t
                         where t.agent_id = a.id
                           and t.status in ('dispatched', 'waiting_local_directory', 'running'))
                then 'working'
            when r.status = 'online' then 'idle'
            when r.last_seen_at > now() - interval '5 minutes' then 'unstable'
            else 'offline' end as status,
       coalesce((select jsonb_agg(jsonb_build_object(
                     'issue_id', i.id, 'identifier', w.issue_prefix || '-' || i.number,
                     'title', i.title, 'issue_status', i.status) order by i.number)
                 from issue i join workspace w on w.id = i.workspace_id
                 where exists (select from agent_task_queue t
                               where t.issue_id = i.id and t.agent_id = a.id
                                 and t.status in ('dispatched', 'waiting_local_directory',
                                                  'running'))), '[]') as active_issues,
       (select max(coalesce(t.completed_at, t.started_at, t.created_at))
        from agent_task_queue t where t.agent_id = a.id) as last_active_at
from squad_member m
left join agent a on m.member_type = 'agent' and a.id = m.member_id
left join agent_runtime r on r.id = a.runtime_id
where m.squad_id = $1
order by m.created_at, m.id;
