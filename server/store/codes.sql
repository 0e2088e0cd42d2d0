-- Sign-in codes sent by e-mail; only their keyed hashes are kept (spec 06 §2.3).

-- name: newcomer
-- What decides whether an address may sign up: whether it has an account, and whether somebody waits
-- for it. $1 address
select exists (select from app_user where lower(email) = $1) as known,
       exists (select from workspace_invitation
               where lower(invitee_email) = $1 and status = 'pending' and expires_at > now())
           as invited;

-- name: lock_address
-- Requests for the same address go one after the other. $1 address
select pg_advisory_xact_lock(hashtextextended('sign-in-code|' || $1, 0));

-- name: sent
-- How many codes an address got within the last hour, and in how many seconds the next may follow the
-- last (not above 0: now). $1 address, $2 pause between two
select count(*) as hour,
       coalesce(extract(epoch from max(created_at) + $2::interval - now()), 0)::float8 as wait
from verification_code
where lower(email) = $1 and created_at > now() - interval '1 hour';

-- name: add_code
-- A new code makes the earlier ones useless. $1 address, $2 hash, $3 how long it is valid
with useless as (
    update verification_code set used = true where lower(email) = $1 and not used
)
insert into verification_code (email, code_hash, expires_at)
values ($1, $2, now() + $3::interval)
returning id;

-- name: drop_code
-- It never reached anybody. $1 code
delete from verification_code where id = $1;

-- name: try_code
-- Whether this is the newest code of the address. A wrong guess is counted, a right one spent.
-- $1 address, $2 hash, $3 how many wrong guesses a code bears
with newest as (
    select id, code_hash from verification_code
    where lower(email) = $1 and not used and expires_at > now() and attempts < $3
    order by created_at desc
    limit 1
    for update
)
update verification_code v
set used = newest.code_hash = $2, attempts = v.attempts + (newest.code_hash <> $2)::int
from newest
where v.id = newest.id
returning v.used;

-- name: account
-- The user of an address. $1 address
select * from app_user where lower(email) = $1 order by created_at limit 1;

-- name: add_account
-- $1 address, $2 name
insert into app_user (email, name) values ($1, $2) on conflict (email) do nothing returning *;
