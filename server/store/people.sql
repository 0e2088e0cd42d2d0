-- Users, workspaces, members and personal access tokens (spec 02 §1.1).

-- name: get_user
-- One user by id.
select * from app_user where id = $1;

-- name: update_user
-- Change only what was sent: $2 is an object of new values, absent keys stay as they are now.
update app_user set
    name = case when $2::jsonb ? 'name' then $2->>'name' else name end,
    avatar_url = case when $2::jsonb ? 'avatar_url' then $2->>'avatar_url' else avatar_url end,
    language = case when $2::jsonb ? 'language' then $2->>'language' else language end,
    timezone = case when $2::jsonb ? 'timezone' then $2->>'timezone' else timezone end,
    profile_description = case when $2::jsonb ? 'profile_description'
        then $2->>'profile_description' else profile_description end,
    updated_at = now()
where id = $1
returning *;

-- name: workspaces_of
-- The workspaces a user belongs to, oldest first; $2 limits it to one of them.
select w.*
from member m join workspace w on w.id = m.workspace_id
where m.user_id = $1 and ($2::uuid is null or w.id = $2)
order by w.created_at, w.id
limit 1000;

-- name: get_workspace
select * from workspace where id = $1;

-- name: create_workspace
-- A new workspace with its owner in one statement; no row when the slug is taken.
with made as (
    insert into workspace (name, slug, description, context, issue_prefix)
    values ($1, $2, $3, $4, $5)
    on conflict (slug) do nothing
    returning *
), owned as (
    insert into member (workspace_id, user_id, role)
    select id, $6, 'owner' from made
)
select * from made;

-- name: update_workspace
-- Change only what was sent, as update_user does.
update workspace set
    name = case when $2::jsonb ? 'name' then $2->>'name' else name end,
    description = case when $2::jsonb ? 'description' then $2->>'description' else description end,
    context = case when $2::jsonb ? 'context' then $2->>'context' else context end,
    settings = case when $2::jsonb ? 'settings' then $2->'settings' else settings end,
    repos = case when $2::jsonb ? 'repos' then $2->'repos' else repos end,
    issue_prefix = case when $2::jsonb ? 'issue_prefix'
        then $2->>'issue_prefix' else issue_prefix end,
    avatar_url = case when $2::jsonb ? 'avatar_url' then $2->>'avatar_url' else avatar_url end,
    updated_at = now()
where id = $1
returning *;

-- name: list_members
-- The people of a workspace, oldest membership first.
select m.id, m.workspace_id, m.user_id, m.role, m.created_at, u.name, u.email, u.avatar_url
from member m join app_user u on u.id = m.user_id
where m.workspace_id = $1
order by m.created_at, m.id
limit 1000;

-- name: members_among
select user_id from member where workspace_id = $1 and user_id = any($2::uuid[]);

-- name: create_token
insert into personal_access_token (user_id, token_hash, token_prefix, name, expires_at)
values ($1, $2, $3, $4, now() + make_interval(days => $5))
returning id, name, token_prefix, expires_at, last_used_at, created_at;

-- name: list_tokens
-- A user's tokens that were not revoked, newest first.
select id, name, token_prefix, expires_at, last_used_at, created_at
from personal_access_token
where user_id = $1 and not revoked
order by created_at desc, id
limit 1000;

-- name: revoke_token
-- No row when it is not this user's or already revoked.
update personal_access_token set revoked = true
where id = $1 and user_id = $2 and not revoked
returning token_hash;

-- name: renew_token
-- Extend a token in its last week. The condition makes parallel renewals extend exactly once.
update personal_access_token set expires_at = now() + interval '90 days'
where token_hash = $1 and user_id = $2 and not revoked
    and expires_at > now() and expires_at <= now() + interval '7 days'
returning expires_at;

-- name: find_token
-- What a token is now, and whether it still stands for anybody.
select user_id, expires_at, not revoked and coalesce(expires_at > now(), true) as valid
from personal_access_token
where token_hash = $1;
