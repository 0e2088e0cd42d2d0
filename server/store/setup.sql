-- name: user
-- Make the first user, or find them by address.
insert into app_user (email, name)
values ($1, $2)
on conflict (email) do update set updated_at = app_user.updated_at
returning id;

-- name: workspace_of
-- The user's oldest workspace.
select w.id, w.slug
  from workspace w
  join member m on m.workspace_id = w.id
 where m.user_id = $1
 order by w.created_at, w.id
 limit 1;

-- name: make_workspace
-- The first workspace; its slug gets a number if somebody has it already.
insert into workspace (name, slug, issue_prefix)
select $1,
       case when exists (select 1 from workspace where slug = $2)
            then $2 || '-' || substr(md5(random()::text), 1, 6) else $2 end,
       $3
returning id, slug;

-- name: make_owner
-- Whoever makes a workspace owns it.
insert into member (workspace_id, user_id, role) values ($1, $2, 'owner');

-- name: revoke_tokens
-- Retire a user's tokens of one name.
update personal_access_token
   set revoked = true
 where user_id = $1
   and name = $2
   and not revoked
returning id;

-- name: make_token
-- Keep a new personal token, by its hash.
insert into personal_access_token (user_id, token_hash, token_prefix, name)
values ($1, $2, $3, $4)
returning id;

-- name: hand_on_sessions
-- A restart changes the token and signs nobody out. $1 retired tokens, $2 the new one
update session set personal_token_id = $2 where personal_token_id = any($1::uuid[]);
