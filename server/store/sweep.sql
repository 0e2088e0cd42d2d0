-- What the sweeper looks for. Rules that end tasks find them without a lock and ask again, with $n
-- the tasks that are locked by then in the order everybody locks in (see finish.sql).

-- name: stale
-- Runtimes not heard of for $1 are offline, at most 500 at a time.
update agent_runtime set status = 'offline', updated_at = statement_timestamp()
where status = 'online' and id in (
    select id from agent_runtime
    where status = 'online'
      and coalesce(last_seen_at, created_at) < statement_timestamp() - $1::interval
    order by id
    limit 500
    for no key update skip locked
)
returning id, workspace_id;

-- name: mark_unreachable
-- What machines that are offline have in flight cannot be reached; at most 500 at a time.
update agent_task_queue set unreachable_since = statement_timestamp()
where id in (
    select t.id
    from agent_task_queue t
    join agent_runtime r on r.id = t.runtime_id
    where t.status in ('dispatched', 'waiting_local_directory', 'running')
      and t.unreachable_since is null and r.status = 'offline'
    order by t.id
    limit 500
    for no key update of t skip locked
)
returning *;

-- name: mark_reachable
-- Their machine is back. What was being prepared gets time to say so. $1 lease, $2 only these
-- runtimes, or null
update agent_task_queue
set unreachable_since = null, back_at = statement_timestamp(),
    prepare_lease_expires_at = case when status = 'running' then prepare_lease_expires_at
                                    else statement_timestamp() + $1::interval end
where id in (
    select t.id
    from agent_task_queue t
    join agent_runtime r on r.id = t.runtime_id
    where t.unreachable_since is not null and r.status = 'online'
      and t.status in ('dispatched', 'waiting_local_directory', 'running')
      and ($2::uuid[] is null or r.id = any($2::uuid[]))
    order by t.id
    limit 500
    for no key update of t skip locked
)
returning *;

-- name: hold_retries
-- A machine that comes back after it was given up may bring the results along, or agents that are
-- still at work: the new attempts of what it ran wait a little before they start there, and so does
-- what else those agents have to do. $1 the runtimes, $2 how long
update agent_task_queue t set not_before = statement_timestamp() + $2::interval
from agent a
where t.status = 'queued' and a.id = t.agent_id and a.runtime_id = any($1::uuid[])
  and coalesce(t.not_before, '-infinity') < statement_timestamp() + $2::interval
  and exists (
      select from agent_task_queue p
      where p.runtime_id = any($1::uuid[]) and p.agent_id = a.id
        and p.status = 'failed' and p.presumed and p.failure_reason = 'runtime_offline'
        and p.late is null
        and (p.id = t.parent_task_id
             or exists (select from task_token k where k.task_id = p.id)));

-- name: tasks_left_behind
-- What could not be reached for $1. $2 only these tasks, or null
select t.id
from agent_task_queue t
join agent_runtime r on r.id = t.runtime_id
where t.unreachable_since < statement_timestamp() - $1::interval and r.status = 'offline'
  and t.status in ('dispatched', 'waiting_local_directory', 'running')
  and ($2::uuid[] is null or t.id = any($2::uuid[]))
limit 200;

-- name: tasks_stuck
-- In flight for too long, on a machine that can be reached. $1 after dispatch without a lease, $2
-- running without a word for $3, since its machine was out of reach if it was, $4 running at all: its
-- token is dead by then; or preparing, with a lease or without. $5 only these tasks, or null
select t.id
from agent_task_queue t
where t.status in ('dispatched', 'waiting_local_directory', 'running')
  and t.unreachable_since is null
  and ((t.status <> 'running'
        and (t.dispatched_at < statement_timestamp() - $4::interval
             or (t.dispatched_at < statement_timestamp() - $1::interval
                 and coalesce(t.prepare_lease_expires_at, '-infinity') < statement_timestamp()
                     - case when t.status = 'dispatched' then interval '0' else $1::interval end)))
       or (t.status = 'running'
           and (t.started_at < statement_timestamp() - $4::interval
                or (greatest(t.started_at, t.back_at) < statement_timestamp() - $2::interval
                    and not exists (select from task_message m
                                    where m.task_id = t.id
                                      and m.created_at > statement_timestamp() - $3::interval)))))
  and ($5::uuid[] is null or t.id = any($5::uuid[]))
limit 200;

-- name: tasks_undeliverable
-- Handed out as often as a claim is repeated, and $1 after the last time still not started. $2 only
-- these tasks, or null
select t.id
from agent_task_queue t
where t.status = 'dispatched' and t.deliveries >= 5 and t.unreachable_since is null
  and t.dispatched_at < statement_timestamp() - $1::interval
  and coalesce(t.prepare_lease_expires_at, '-infinity') < statement_timestamp()
  and ($2::uuid[] is null or t.id = any($2::uuid[]))
limit 200;

-- name: tasks_expired
-- Queued for longer than $1 though the agent had nothing else to do: its machine is not coming. What
-- was parked has waited since it was to start. $2 only these tasks, or null
select t.id
from agent_task_queue t
where t.status = 'queued' and t.created_at < statement_timestamp() - $1::interval
  and (t.not_before is null or t.not_before < statement_timestamp() - $1::interval)
  and not exists (select from agent_task_queue f
                  where f.agent_id = t.agent_id
                    and f.status in ('dispatched', 'waiting_local_directory', 'running'))
  and ($2::uuid[] is null or t.id = any($2::uuid[]))
order by t.created_at
limit 200;

-- name: tasks_due
-- Parked tasks whose time has come within $1, and where they are to run.
select t.id, a.runtime_id
from agent_task_queue t
join agent a on a.id = t.agent_id
where t.status = 'queued'
  and t.not_before between statement_timestamp() - $1::interval and statement_timestamp()
limit 1000;

-- name: forget_runtimes
-- Machines gone for $1 that no agent is bound to and that have nothing left to do; what they have done
-- stays.
delete from agent_runtime r
where r.status = 'offline'
  and coalesce(r.last_seen_at, r.created_at) < statement_timestamp() - $1::interval
  and not exists (select from agent a where a.runtime_id = r.id)
  and not exists (select from agent_task_queue t
                  where t.runtime_id = r.id
                    and t.status in ('queued', 'dispatched', 'waiting_local_directory', 'running'))
returning r.id, r.workspace_id;

-- name: forget_tokens
delete from task_token where expires_at < statement_timestamp();

-- name: revoke_forsaken
-- Agents out of reach keep their tokens as long as their tasks might go on (see go_on): until a new
-- attempt, or what takes its place, has started or somebody has ended it, and not when people have done
-- away with the agent, the issue or the chat.
-- $1 how long a token lives
with away as materialized (
    select id, agent_id, issue_id, chat_session_id, autopilot_run_id, back_at, completed_at
    from agent_task_queue
    where presumed and status = 'failed' and failure_reason = 'runtime_offline' and late is null
      and completed_at > statement_timestamp() - $1::interval
)
delete from task_token k
using away t
where k.task_id = t.id
  and (exists (select from agent_task_queue n
               where n.parent_task_id = t.id and (t.back_at is null or n.created_at > t.back_at)
                 and (n.started_at is not null
                      or n.status in ('completed', 'failed', 'cancelled')))
       or exists (select from agent_task_queue n
                  where n.agent_id = t.agent_id and n.started_at > t.completed_at
                    and (n.issue_id = t.issue_id or n.chat_session_id = t.chat_session_id))
       or exists (select from agent a where a.id = t.agent_id and a.archived_at is not null)
       or exists (select from issue i where i.id = t.issue_id and i.status = 'cancelled')
       or (t.chat_session_id is not null
           and not exists (select from chat_session c where c.id = t.chat_session_id))
       or (t.autopilot_run_id is not null
           and not exists (select from autopilot_run r where r.id = t.autopilot_run_id)))
returning k.token_hash;

-- name: forget_daemon_tokens
delete from daemon_token where expires_at < statement_timestamp();

-- name: forget_records
-- What is kept for looking back, and only for a while: calls of webhooks for $1, runs that were
-- skipped for $2, what people archived for $3, requests to machines an hour. Each time at most a batch
-- of each, so that a long pause is made up for in pieces.
with calls as (
    delete from webhook_delivery where id in (
        select id from webhook_delivery where received_at < now() - $1::interval limit 1000)
), requests as (
    delete from runtime_request where id in (
        select id from runtime_request where expires_at < now() - interval '1 hour' limit 1000)
), links as (
    delete from sign_in_link where code_hash in (
        select code_hash from sign_in_link where expires_at < now() - interval '1 day' limit 1000)
), codes as (
    delete from verification_code where id in (
        select id from verification_code where expires_at < now() - interval '1 day' limit 1000)
), runs as (
    delete from autopilot_run where id in (
        select id from autopilot_run
        where status = 'skipped' and completed_at < now() - $2::interval limit 1000)
)
delete from inbox_item where id in (
    select id from inbox_item where archived and created_at < now() - $3::interval limit 1000);
