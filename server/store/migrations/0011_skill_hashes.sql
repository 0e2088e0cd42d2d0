-- A skill's hash is kept beside it, whoever writes it: claims hand out hashes far more often than
-- skills change. The rule is spec 01 §3.7; it must match shared/skillbundle.py byte for byte.
create function text_sha256(content text) returns text
    language sql immutable strict parallel safe
    return 'sha256:' || encode(sha256(convert_to(content, 'UTF8')), 'hex');

create function text_size(content text) returns int
    language sql immutable strict parallel safe
    return length(convert_to(content, 'UTF8'));

create function hash_part(content text) returns bytea
    language sql immutable strict parallel safe
    return convert_to(text_size(content)::text || ':' || content || chr(10), 'UTF8');

alter table skill_file
    add column sha256 text not null generated always as (text_sha256(content)) stored,
    add column size_bytes int not null generated always as (text_size(content)) stored;

alter table skill
    add column hash text not null default '',
    add column size_bytes int not null default 0;

create function seal_skills(skills uuid[]) returns void language sql as $$
    update skill s set
        hash = 'sha256:' || encode(sha256(
            hash_part('v1') || hash_part('workspace') || hash_part(s.id::text)
            || hash_part(s.name) || hash_part(s.description) || hash_part(s.content)
            || coalesce(f.parts, ''::bytea)), 'hex'),
        size_bytes = text_size(s.content) + coalesce(f.size, 0)
    from skill k
    left join lateral (
        select string_agg(hash_part(x.path) || hash_part(x.sha256) || hash_part(x.content),
                          ''::bytea order by x.path collate "C") as parts,
               sum(x.size_bytes)::int as size
        from skill_file x where x.skill_id = k.id
    ) f on true
    where s.id = k.id and k.id = any(skills);
$$;

create function seal_changed_skills() returns trigger language plpgsql as $$
begin
    perform seal_skills(array(select id from changed order by id));
    return null;
end $$;

create function seal_skills_of_changed_files() returns trigger language plpgsql as $$
begin
    perform seal_skills(array(select distinct skill_id from changed order by skill_id));
    return null;
end $$;

-- A trigger with the rows of its statement cannot name columns: sealing itself, which changes no
-- text, is kept from firing it again by the depth.
create trigger skill_made after insert on skill
    referencing new table as changed for each statement execute function seal_changed_skills();
create trigger skill_changed after update on skill
    referencing new table as changed for each statement
    when (pg_trigger_depth() = 0) execute function seal_changed_skills();
create trigger skill_file_made after insert on skill_file
    referencing new table as changed for each statement
    execute function seal_skills_of_changed_files();
create trigger skill_file_changed after update on skill_file
    referencing new table as changed for each statement
    execute function seal_skills_of_changed_files();
create trigger skill_file_gone after delete on skill_file
    referencing old table as changed for each statement
    execute function seal_skills_of_changed_files();

select seal_skills(array(select id from skill));
