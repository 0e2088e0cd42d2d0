-- What stands before the host in a repository's address, user and password, is kept apart from it:
-- members are shown the address alone. As it stood there, percent-encoded.
create table repository_credential (
    workspace_id uuid not null references workspace (id) on delete cascade,
    url text not null,
    userinfo text not null,
    updated_at timestamptz not null default now(),
    primary key (workspace_id, url)
);

insert into repository_credential (workspace_id, url, userinfo)
select distinct on (workspace_id, shown) workspace_id, shown, userinfo
from (
    select workspace_id, regexp_replace(url, '^(https?://)[^/]*@', '\1', 'i') as shown,
           substring(url from '^[A-Za-z]+://([^/]*)@') as userinfo, rank
    from (
        select w.id as workspace_id, trim(r ->> 'url') as url, 1 as rank
        from workspace w
        cross join lateral jsonb_array_elements(
            case when jsonb_typeof(w.repos) = 'array' then w.repos else '[]' end) r
        where jsonb_typeof(r) = 'object'
        union all
        select x.workspace_id, x.resource_ref ->> 'url', 2
        from project_resource x where x.resource_type = 'github_repo'
    ) found
    where url ~* '^https?://[^/]*@'
) split
order by workspace_id, shown, rank;

update workspace w set repos = (
    select jsonb_agg(
        case when jsonb_typeof(r) = 'object' and trim(r ->> 'url') ~* '^https?://[^/]*@'
            then jsonb_set(r, '{url}', to_jsonb(
                regexp_replace(trim(r ->> 'url'), '^(https?://)[^/]*@', '\1', 'i')))
            else r end order by place)
    from jsonb_array_elements(w.repos) with ordinality as x (r, place))
where jsonb_typeof(w.repos) = 'array' and w.repos::text ~* 'https?://[^/"]*@';

-- the same repository twice in one project, with and without, is one
delete from project_resource x
where x.resource_type = 'github_repo' and x.resource_ref ->> 'url' ~* '^https?://[^/]*@'
  and exists (
      select from project_resource y
      where y.project_id = x.project_id and y.resource_type = 'github_repo' and y.id <> x.id
        and regexp_replace(y.resource_ref ->> 'url', '^(https?://)[^/]*@', '\1', 'i')
            = regexp_replace(x.resource_ref ->> 'url', '^(https?://)[^/]*@', '\1', 'i')
        and (y.resource_ref ->> 'url' !~* '^https?://[^/]*@' or y.id < x.id));

update project_resource set resource_ref = jsonb_set(resource_ref, '{url}', to_jsonb(
    regexp_replace(resource_ref ->> 'url', '^(https?://)[^/]*@', '\1', 'i')))
where resource_type = 'github_repo' and resource_ref ->> 'url' ~* '^https?://[^/]*@';
