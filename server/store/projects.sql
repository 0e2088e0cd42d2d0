-- Projects and what agents work on in them (spec 02 §1.4, 06 §14).

-- name: list_projects
-- Newest first, with counts. $1 workspace, $2 status, $3 priority, $4 one project, $5 a pattern
select p.*, n.issue_count, n.done_count,
       (select count(*) from project_resource r where r.project_id = p.id) as resource_count
from project p
cross join lateral (
    select count(*) as issue_count,
           count(*) filter (where i.status in ('done', 'cancelled')) as done_count
    from issue i where i.project_id = p.id
) n
where p.workspace_id = $1
  and ($2::text is null or p.status = $2) and ($3::text is null or p.priority = $3)
  and ($4::uuid is null or p.id = $4)
  and ($5::text is null or p.title ilike $5 or p.description ilike $5)
order by p.created_at desc, p.id
limit 1000;

-- name: hold_project
-- It is there, and nobody deletes it until this transaction ends.
select id from project where workspace_id = $1 and id = $2 for key share;

-- name: lock_project
select * from project where workspace_id = $1 and id = $2 for no key update;

-- name: create_project
insert into project (workspace_id, title, description, icon, status, priority, lead_type, lead_id,
                     start_date, due_date)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
returning id;

-- name: update_project
-- $2 is an object of new values, null clears; absent keys stay.
update project set
    title = coalesce($2::jsonb ->> 'title', title),
    description = case when $2::jsonb ? 'description' then $2 ->> 'description'
                       else description end,
    icon = case when $2::jsonb ? 'icon' then $2 ->> 'icon' else icon end,
    status = coalesce($2::jsonb ->> 'status', status),
    priority = coalesce($2::jsonb ->> 'priority', priority),
    lead_type = case when $2::jsonb ? 'lead_type' then $2 ->> 'lead_type' else lead_type end,
    lead_id = case when $2::jsonb ? 'lead_id' then ($2 ->> 'lead_id')::uuid else lead_id end,
    start_date = case when $2::jsonb ? 'start_date'
        then ($2 ->> 'start_date')::date else start_date end,
    due_date = case when $2::jsonb ? 'due_date' then ($2 ->> 'due_date')::date else due_date end,
    updated_at = now()
where id = $1;

-- name: delete_project
delete from project where id = $1;

-- name: leads
-- Whether somebody can lead a project here. $1 workspace, $2 type, $3 id
select case $2::text
    when 'agent' then exists (select from agent where workspace_id = $1 and id = $3)
    else exists (select from member where workspace_id = $1 and user_id = $3) end;

-- name: list_resources
select * from project_resource where project_id = $1 order by position, created_at, id;

-- name: lock_resource
select * from project_resource where project_id = $1 and id = $2 for no key update;

-- name: add_resources
-- $4 an array of {resource_type, resource_ref, label, position}; what is attached already is left
-- out of the answer.
insert into project_resource (project_id, workspace_id, created_by, resource_type, resource_ref,
                              label, position)
select $1, $2, $3, x.resource_type, x.resource_ref, nullif(x.label, ''),
       coalesce(x.position, (select coalesce(max(position) + 1, 0) from project_resource
                             where project_id = $1) + x.place::int - 1)
from rows from (jsonb_to_recordset($4::jsonb)
    as (resource_type text, resource_ref jsonb, label text, position int)) with ordinality
    as x (resource_type, resource_ref, label, position, place)
on conflict (project_id, resource_type, resource_ref) do nothing
returning *;

-- name: machine_named
-- Whether all machines that an id may mean (case does not count for daemons) are the caller's; no row
-- when there is none. $1 workspace, $2 daemon, $3 caller
select bool_and(coalesce(r.owner_id = $3::uuid, false)) as theirs
from agent_runtime r
where r.workspace_id = $1 and machine_key(r.daemon_id) = machine_key($2)
having count(*) > 0;

-- name: directory_of
-- Whether the project has a directory on a machine. $1 project, $2 daemon, $3 but for this resource
select exists (select from project_resource
               where project_id = $1 and resource_type = 'local_directory'
                 and machine_key(resource_ref ->> 'daemon_id') = machine_key($2)
                 and id is distinct from $3::uuid);

-- name: update_resource
update project_resource set
    resource_ref = coalesce($2::jsonb -> 'resource_ref', resource_ref),
    label = case when $2::jsonb ? 'label' then nullif($2 ->> 'label', '') else label end,
    position = coalesce(($2::jsonb ->> 'position')::int, position),
    updated_at = now()
where id = $1
returning *;

-- name: delete_resource
delete from project_resource where project_id = $1 and id = $2 returning id;
