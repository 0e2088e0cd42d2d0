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
-- How many codes an address got within the last hour, how many of them one peer asked for, and in how
-- many seconds the next may follow that peer's last (not above 0: now). $1 address, $2 pause between
-- two, $3 peer
select count(*) as hour,
       count(*) filter (where peer = $3) as peers,
       coalesce(extract(epoch from max(created_at) filter (where peer = $3) + $2::interval - now()),
                0)::float8 as wait
from verification_code
where lower(email) = $1 and created_at > now() - interval '1 hour';

-- name: add_code
-- A new code makes the asker's earlier ones useless, and nobody else's. $1 address, $2 hash,
-- $3 how long it is valid, $4 hash of the asker's nonce, $5 the asker's peer address
with useless as (
    update verification_code set used = true
    where lower(email) = $1 and not used and (asker_hash = $4 or peer = $5)
)
insert into verification_code (email, code_hash, expires_at, asker_hash, peer)
values ($1, $2, now() + $3::interval, $4, $5)
returning id;

-- name: drop_code
-- It never reached anybody. $1 code
delete from verification_code where id = $1;

-- name: try_code
-- Whether this is the newest code that the asker, known by nonce or else by peer, was sent for the
-- address. A wrong guess is counted against the one or the other, so that a neighbour's guesses leave
-- the asker theirs; a right one is spent. $1 address, $2 hash, $3 how many wrong guesses a code bears
-- from each, $4 hash of the nonce, $5 peer
with newest as (
    select id, code_hash, coalesce(asker_hash = $4, false) as asked from verification_code
    where lower(email) = $1 and not used and expires_at > now()
      and (asker_hash = $4 and attempts < $3
           or asker_hash is distinct from $4 and peer = $5 and peer_attempts < $3)
    order by asked desc, created_at desc
    limit 1
    for update
)
update verification_code v
set used = newest.code_hash = $2,
    attempts = v.attempts + (asked and newest.code_hash <> $2)::int,
    peer_attempts = v.peer_attempts + (not asked and newest.code_hash <> $2)::int
from newest
where v.id = newest.id
returning v.used;

-- name: account
-- The user of an address. $1 address
select * from app_user where lower(email) = $1 order by created_at limit 1;

-- name: add_account
-- $1 address, $2 name
insert into app_user (email, name) values ($1, $2) on conflict (email) do nothing returning *;
