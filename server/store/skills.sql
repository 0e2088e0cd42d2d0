-- Skills: what people teach their agents (spec 02 §1.3, 06 §12).

-- name: list_skills
-- Without their text, by name. $1 workspace
select id, workspace_id, name, description, config, created_by, created_at, updated_at
from skill where workspace_id = $1
order by name, id
limit 1000;

-- name: get_skill
-- One skill and its files. $1 workspace, $2 skill
select s.*, coalesce((select jsonb_agg(to_jsonb(f) order by f.path)
                      from skill_file f where f.skill_id = s.id), '[]') as files
from skill s
where s.workspace_id = $1 and s.id = $2;

-- name: lock_skill
-- One skill for a change; nobody else changes it until this transaction ends.
select * from skill where workspace_id = $1 and id = $2 for no key update;

-- name: create_skill
-- No row when the name is taken. $6 files as {path, content}
with made as (
    insert into skill (workspace_id, name, description, content, config, created_by)
    values ($1, $2, $3, $4, $5, $7)
    on conflict on constraint skill_workspace_name_unique do nothing
    returning *
), filed as (
    insert into skill_file (skill_id, path, content)
    select m.id, x.path, x.content
    from made m, jsonb_to_recordset($6::jsonb) as x (path text, content text)
    returning *
)
select m.*, coalesce((select jsonb_agg(to_jsonb(f) order by f.path) from filed f), '[]') as files
from made m;

-- name: update_skill
-- $2 is an object of new values; absent keys stay. Files are replaced when $3 is not null.
with changed as (
    update skill set
        name = coalesce($2::jsonb ->> 'name', name),
        description = coalesce($2::jsonb ->> 'description', description),
        content = coalesce($2::jsonb ->> 'content', content),
        config = coalesce($2::jsonb -> 'config', config),
        updated_at = now()
    where id = $1
    returning *
), wanted as (
    select x.path, x.content from jsonb_to_recordset(coalesce($3::jsonb, '[]'))
        as x (path text, content text)
), dropped as (
    delete from skill_file f
    where f.skill_id = $1 and $3::jsonb is not null
      and f.path not in (select path from wanted)
), kept as (
    insert into skill_file (skill_id, path, content)
    select $1, path, content from wanted
    on conflict (skill_id, path) do update set content = excluded.content, updated_at = now()
    returning *
)
select c.*, coalesce((
    select jsonb_agg(to_jsonb(f) order by f.path)
    from (select * from kept
          union all
          select * from skill_file f where f.skill_id = $1 and $3::jsonb is null) f), '[]') as files
from changed c;

-- name: delete_skill
delete from skill where id = $1;

-- name: list_files
select * from skill_file where skill_id = $1 order by path;

-- name: put_file
with kept as (
    insert into skill_file (skill_id, path, content) values ($1, $2, $3)
    on conflict (skill_id, path) do update set content = excluded.content, updated_at = now()
    returning *
), touched as (
    update skill set updated_at = now() where id = $1
)
select * from kept;

-- name: delete_file
with gone as (
    delete from skill_file where skill_id = $1 and id = $2 returning skill_id
)
update skill s set updated_at = now() from gone where s.id = gone.skill_id returning s.id;

-- name: agent_skills
-- An agent's skills without their text, by name.
select s.id, s.workspace_id, s.name, s.description, s.config, s.created_by, s.created_at,
       s.updated_at
from agent_skill k join skill s on s.id = k.skill_id
where k.agent_id = $1
order by s.name, s.id;

-- name: count_skills
-- How many of these are skills of the workspace. $1 workspace, $2 skills
select count(*) from skill where workspace_id = $1 and id = any($2::uuid[]);

-- name: give_skills
-- $1 agent, $2 skills, $3 whether it keeps the others
with dropped as (
    delete from agent_skill
    where agent_id = $1 and not $3::boolean and skill_id <> all($2::uuid[])
)
insert into agent_skill (agent_id, skill_id)
select $1, id from unnest($2::uuid[]) as x (id)
on conflict do nothing;

-- name: bundles_for_task
-- The text and files of those of an agent's skills that are asked for. $1 agent, $2 skills
select s.id, s.name, s.description, s.content,
       coalesce((select jsonb_object_agg(f.path, f.content)
                 from skill_file f where f.skill_id = s.id), '{}') as files
from agent_skill k join skill s on s.id = k.skill_id
where k.agent_id = $1 and s.id = any($2::uuid[]);

-- name: named_like
-- A skill of that name, locked, and those whose names begin like copies of it. $1 workspace, $2 name,
-- $3 how copies begin
select id, name, created_by from skill
where workspace_id = $1 and (name = $2 or starts_with(name, $3))
order by id
for no key update;
