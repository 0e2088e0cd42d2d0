-- name: keep_credentials
-- $1 workspace, $2 addresses, $3 what stood before their hosts. Others stay while a repository of the
-- workspace or of a project has their address.
with named as (
    select r ->> 'url' as url from workspace w
    cross join lateral jsonb_array_elements(w.repos) r where w.id = $1
    union all
    select x.resource_ref ->> 'url' from project_resource x
    where x.workspace_id = $1 and x.resource_type = 'github_repo'
), gone as (
    delete from repository_credential c
    where c.workspace_id = $1 and c.url <> all ($2::text[])
      and not exists (select from named where named.url = c.url)
)
insert into repository_credential (workspace_id, url, userinfo)
select $1, url, userinfo from unnest($2::text[], $3::text[]) as given (url, userinfo)
on conflict (workspace_id, url) do update
set userinfo = excluded.userinfo, updated_at = now();

-- name: credential
-- $1 workspace, $2 address
select userinfo from repository_credential where workspace_id = $1 and url = $2;
