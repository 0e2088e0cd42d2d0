-- Sessions of browsers and command lines, each a row that can be ended (spec 06 §2.3).

-- name: secret
-- A secret all servers of this database share; the first to ask makes it. $1 name, $2 a proposal
with made as (
    insert into server_secret (name, value) values ($1, $2) on conflict (name) do nothing
    returning value
)
select value from made union all select value from server_secret where name = $1 limit 1;

-- name: open
-- A session; no row when what it is made with is no longer there. $1 user, $2 token's hash, $3 kind,
-- $4 user agent, $5 end, $6 hash of the personal token or session it is made with, or empty,
-- $7 the personal token a link hands on, or null
with maker as (
    select $7::uuid as token_id where $6 = ''
    union all
    select id from personal_access_token where token_hash = $6 and not revoked
    union all
    select personal_token_id from session where token_hash = $6
)
insert into session (user_id, token_hash, kind, user_agent, expires_at, personal_token_id)
select $1, $2, $3, $4, $5, token_id from maker
returning id;

-- name: by_token
-- Whom a session stands for; nothing when it has ended, or the personal token it was made with.
select s.id as session_id, s.user_id, u.email, least(s.expires_at, t.expires_at) as expires_at,
       s.last_used_at < now() - interval '1 hour' as stale
from session s
join app_user u on u.id = s.user_id
left join personal_access_token t on t.id = s.personal_token_id
where s.token_hash = $1 and s.expires_at > now()
  and (s.personal_token_id is null
       or not t.revoked and (t.expires_at is null or t.expires_at > now()));

-- name: used
-- Coarse, so that it costs a write only now and then. $1 token's hash
update session set last_used_at = now()
where token_hash = $1 and last_used_at < now() - interval '1 hour';

-- name: list_open
-- A person's sessions, the last used first. $1 user
select s.id, s.kind, s.user_agent, s.token_hash, s.created_at, s.last_used_at,
       least(s.expires_at, t.expires_at) as expires_at, t.name as personal_token
from session s
left join personal_access_token t on t.id = s.personal_token_id
where s.user_id = $1 and s.expires_at > now()
  and (t.id is null or not t.revoked and (t.expires_at is null or t.expires_at > now()))
order by s.last_used_at desc, s.created_at desc, s.id
limit 1000;

-- name: close
-- $1 token's hash
delete from session where token_hash = $1 returning token_hash;

-- name: close_one
-- $1 user, $2 session
delete from session where user_id = $1 and id = $2 returning token_hash;

-- name: close_all
-- Every session of a person, and the links that would open another. $1 user
with links as (delete from sign_in_link where user_id = $1 and used_at is null)
delete from session where user_id = $1 returning token_hash;

-- name: add_link
-- Keep a sign-in link until it is spent or over; no row when what it is made with is no longer there.
-- $1 code's hash, $2 user, $3 end, $4 hash of the personal token or session it is made with
insert into sign_in_link (code_hash, user_id, expires_at, personal_token_id)
select $1, $2, $3, token_id from (
    select id as token_id from personal_access_token where token_hash = $4 and not revoked
    union all
    select personal_token_id from session where token_hash = $4
) maker
returning code_hash;

-- name: spend_link
-- Use a sign-in link; no row when it was used before, is over, never was, or was made with a personal
-- token that is revoked. $1 code's hash
update sign_in_link l set used_at = now()
from app_user u
where l.code_hash = $1 and l.used_at is null and l.expires_at > now() and u.id = l.user_id
  and not exists (select from personal_access_token t
                  where t.id = l.personal_token_id and t.revoked)
returning u.id as user_id, u.email, u.name, l.personal_token_id;
