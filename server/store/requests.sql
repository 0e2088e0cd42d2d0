-- Requests to machines (spec 02 §9.2). One that nobody answered in time shows as `timeout`.

-- name: create
-- No row when the runtime must be free of such requests and is not. Old ones are forgotten.
-- $1 id, $2 runtime, $3 kind, $4 parameters, $5 user, $6 how long it may wait, $7 how long it may
-- run, $8 how long it is kept, $9 whether it must be the only one
with forgotten as (
    delete from runtime_request
    where runtime_id = $2 and kind = $3 and expires_at < statement_timestamp() - $8::interval
), busy as (
    select from runtime_request
    where runtime_id = $2 and kind = $3 and status in ('pending', 'running')
      and expires_at > statement_timestamp()
)
insert into runtime_request (id, runtime_id, kind, params, created_by, expires_at, run_limit)
select $1, $2, $3, $4, $5, statement_timestamp() + $6::interval, $7
where not ($9::boolean and exists (select from busy))
returning *, status as shown;

-- name: look_up
-- $1 id, $2 runtime, $3 kind, $4 how long it is kept
select *, case when status in ('pending', 'running') and expires_at < statement_timestamp()
               then 'timeout' else status end as shown
from runtime_request
where id = $1 and runtime_id = $2 and kind = $3
  and expires_at > statement_timestamp() - $4::interval;

-- name: lock
-- As `look_up`, for its result; also when it has timed out. $1 id, $2 runtime, $3 kind
select *, status in ('pending', 'running') and expires_at > statement_timestamp() as open
from runtime_request
where id = $1 and runtime_id = $2 and kind = $3
for no key update;

-- name: acknowledge
update runtime_request
set acknowledged = true, status = 'running', updated_at = statement_timestamp(),
    expires_at = case when handed_at is null then statement_timestamp() + run_limit
                      else expires_at end,
    handed_at = coalesce(handed_at, statement_timestamp())
where id = $1 and status in ('pending', 'running');

-- name: finish
-- $2 status, $3 result, $4 error
update runtime_request
set status = $2, result = $3, error = nullif($4, ''), updated_at = statement_timestamp()
where id = $1 and status in ('pending', 'running');

-- name: skill_named
-- The skill an import would collide with. $1 workspace, $2 name
select id, created_by from skill where workspace_id = $1 and name = $2 for no key update;
