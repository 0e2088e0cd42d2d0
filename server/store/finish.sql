-- How tasks end. First the tasks are locked and read, then, in a statement of its own, one thing
-- happens to all of them: what ends a task also revokes its tokens, frees its agent and finds what
-- that agent may do next. The agents are locked too, since their status is derived from rows that
-- others change. Everyone who locks several rows does it in this order: issues, agents, tasks.

-- name: lock_tasks
-- $1 tasks, $2 user, $3 bound
with held as (
    select i.id, i.title, i.status
    from issue i
    where i.id in (select t.issue_id from agent_task_queue t where t.id = any($1::uuid[]))
    order by i.id
    for no key update
)
select t.*, i.title as issue_title, i.status as issue_status,
       a.archived_at is not null as agent_archived,
       {own r} as allowed
from agent_task_queue t
join agent a on a.id = t.agent_id
join agent_runtime r on r.id = t.runtime_id
left join held i on i.id = t.issue_id
where t.id = any($1::uuid[])
order by a.id, t.id
for no key update of a, t;

-- name: retries_of
-- The new attempts of a task since it was last taken back. $1 task, $2 when that was, or null
select id from agent_task_queue
where parent_task_id = $1 and ($2::timestamptz is null or created_at > $2);

-- name: missed
-- What was said where a new attempt waited, its agent's own words aside: it would have heard. Newest
-- first. $1 the attempts
select c.id, c.content, c.author_type, c.author_id
from agent_task_queue r
join comment c on c.issue_id = r.issue_id and c.type = 'comment' and c.created_at >= r.created_at
where r.id = any($1::uuid[]) and not (c.author_type = 'agent' and c.author_id = r.agent_id)
order by c.created_at desc, c.id desc
limit 50;

-- name: follow_up
-- A run for a comment that nobody else will answer. $1 the attempt that was to, $2 comment, $3 its
-- summary, $4 type and $5 id of who wrote it
insert into agent_task_queue (workspace_id, agent_id, runtime_id, issue_id, priority,
    trigger_comment_id, trigger_summary, is_leader_task, initiator_type, initiator_id, depth)
select r.workspace_id, r.agent_id, a.runtime_id, r.issue_id, r.priority, $2, nullif($3::text, ''),
       r.is_leader_task, $4, $5, case when $4::text = 'agent' then r.depth + 1 else 0 end
from agent_task_queue r
join agent a on a.id = r.agent_id and a.archived_at is null
where r.id = $1
on conflict (issue_id, agent_id) where status in ('queued', 'dispatched') do nothing
returning *;

-- name: keep_late
-- What a daemon said of a task that had ended without it: its agent is done. The first word stands; of
-- a chat that is deleted, only that there was one. $1 task, $2 it
with kept as (
    update agent_task_queue t
    set late = case when t.chat_session_id is null
                      or exists (select from chat_session c where c.id = t.chat_session_id)
                    then $2::jsonb else $2::jsonb - 'result' - 'error' end
    where t.id = $1 and t.late is null
    returning t.*
), revoked as (
    delete from task_token k using kept where k.task_id = kept.id returning k.token_hash
)
select kept.*, array(select token_hash from revoked) as tokens from kept;

-- name: go_on
-- A task that was given up with its machine runs after all, unless its agent has as much to do by now
-- as it may, or is at work in the same place, or has been since: a follow-up that was queued already
-- takes the place of a new attempt. $1 task
with running as (
    update agent_task_queue t
    set status = 'running', completed_at = null, error = null, failure_reason = null,
        presumed = false, unreachable_since = null, resume_at = null,
        back_at = statement_timestamp()
    from agent a
    where t.id = $1 and t.status = 'failed' and t.presumed
      and t.failure_reason = 'runtime_offline' and t.late is null and t.started_at is not null
      and a.id = t.agent_id and a.archived_at is null
      and (select count(*) from agent_task_queue f
           where f.agent_id = a.id
             and f.status in ('dispatched', 'waiting_local_directory', 'running'))
          < a.max_concurrent_tasks
      and not exists (
          select from agent_task_queue f
          where f.agent_id = a.id
            and f.status in ('dispatched', 'waiting_local_directory', 'running')
            and (f.issue_id = t.issue_id or f.chat_session_id = t.chat_session_id
                 or (num_nonnulls(t.issue_id, t.chat_session_id, t.autopilot_run_id) = 0
                     and num_nonnulls(f.issue_id, f.chat_session_id, f.autopilot_run_id) = 0)))
      and (t.chat_session_id is null
           or exists (select from chat_session c where c.id = t.chat_session_id))
      and (t.autopilot_run_id is null
           or exists (select from autopilot_run r where r.id = t.autopilot_run_id))
      and not exists (
          select from agent_task_queue f
          where f.agent_id = a.id and f.started_at > t.completed_at
            and (f.issue_id = t.issue_id or f.chat_session_id = t.chat_session_id))
    returning t.*
), busy as (
    update agent a set status = 'working', updated_at = statement_timestamp()
    from running r
    where a.id = r.agent_id and a.status <> 'working'
    returning a.*
)
select r.*, (select to_jsonb(b) from busy b) as agent from running r;

-- name: complete
-- $1 task, $2 result, $3 session, $4 directory, $5 the comment to post if the agent wrote none, $6
-- also if it was failed on the server's own judgement
with done as (
    update agent_task_queue
    set status = 'completed', completed_at = statement_timestamp(), result = $2::jsonb,
        session_id = coalesce(nullif($3::text, ''), session_id),
        work_dir = coalesce(nullif($4::text, ''), work_dir),
        prepare_lease_expires_at = null, wait_reason = null, unreachable_since = null,
        error = null, failure_reason = null, presumed = false
    where id = $1 and (status = 'running' or ($6 and status = 'failed' and presumed))
    returning *
), revoked as (
    delete from task_token k using done where k.task_id = done.id returning k.token_hash
), posted as (
    insert into comment (issue_id, workspace_id, author_type, author_id, content, parent_id)
    select d.issue_id, d.workspace_id, 'agent', d.agent_id, $5::text, d.trigger_comment_id
    from done d
    where d.issue_id is not null and $5::text <> ''
      and not exists (select from comment c
                      where c.issue_id = d.issue_id and c.author_type = 'agent'
                        and c.author_id = d.agent_id and c.type = 'comment'
                        and c.created_at >= d.started_at)
      -- a squad's leader that decided to do nothing has nothing to say
      and not exists (select from activity_log l
                      where l.issue_id = d.issue_id and l.actor_type = 'agent'
                        and l.actor_id = d.agent_id and l.action = 'squad_leader_evaluated'
                        and l.details ->> 'outcome' = 'no_action'
                        and l.details ->> 'task_id' = d.id::text)
    returning *
), logged as (
    insert into activity_log (workspace_id, issue_id, actor_type, actor_id, action, details)
    select d.workspace_id, d.issue_id, 'agent', d.agent_id, 'task_completed',
           jsonb_build_object('task_id', d.id)
    from done d
    where d.issue_id is not null
    returning *
), executed as (
    update issue i set first_executed_at = statement_timestamp()
    from done d
    where i.id = d.issue_id and i.first_executed_at is null
), freed as (
    update agent a set status = 'idle', updated_at = statement_timestamp()
    from done d
    where a.id = d.agent_id and a.status <> 'idle'
      and not exists (select from agent_task_queue q
                      where q.agent_id = a.id and q.id <> d.id
                        and q.status in ('dispatched', 'waiting_local_directory', 'running'))
    returning a.*
), next as (
    -- what the place that has become free is for; the retries are told of themselves
    select a.runtime_id, q.id
    from agent a
    cross join lateral (
        select q.id from agent_task_queue q
        where q.agent_id = a.id and q.status = 'queued'
          and (q.not_before is null or q.not_before <= statement_timestamp())
          and q.id not in (select id from done)
        order by q.priority desc, q.created_at
        limit 1
    ) q
    where a.id in (select agent_id from done) and a.archived_at is null
)
select array(select to_jsonb(x) from done x) as tasks,
       array(select to_jsonb(x) from next x) as next,
       array(select to_jsonb(x) from posted x) as comments,
       array(select to_jsonb(x) from freed x) as agents,
       array(select token_hash from revoked) as tokens,
       '{}'::jsonb[] as retries,
       array(select to_jsonb(x) from logged x) as activities;

-- name: fail
-- $1 an array of what was decided for each task: id, error, reason, session_id, work_dir, comment
-- (posted unless empty), retry, fresh (the retry must not resume), resume_at (the retry is not to
-- start before), presumed (nobody has seen it fail), adopt (a presumption it replaces)
with decided as (
    select * from jsonb_to_recordset($1::jsonb)
        as d (id uuid, error text, reason text, session_id text, work_dir text, comment text,
              retry boolean, fresh boolean, resume_at timestamptz, presumed boolean, adopt boolean)
), failed as (
    update agent_task_queue t
    set status = 'failed', completed_at = statement_timestamp(), error = d.error,
        failure_reason = d.reason, session_id = coalesce(nullif(d.session_id, ''), t.session_id),
        work_dir = coalesce(nullif(d.work_dir, ''), t.work_dir),
        prepare_lease_expires_at = null, wait_reason = null, unreachable_since = null,
        resume_at = d.resume_at, presumed = d.presumed
    from decided d
    where t.id = d.id
      and (t.status not in ('completed', 'failed', 'cancelled')
           or (d.adopt and t.status = 'failed' and t.presumed))
    returning t.*, d.comment, d.retry, d.fresh
), retried as (
    insert into agent_task_queue (workspace_id, agent_id, runtime_id, issue_id, chat_session_id,
        trigger_comment_id, parent_task_id, priority, context, session_id, work_dir, attempt,
        max_attempts, trigger_summary, force_fresh_session, is_leader_task, initiator_type,
        initiator_id, handoff_note, depth, not_before)
    select f.workspace_id, f.agent_id, a.runtime_id, f.issue_id, f.chat_session_id,
        f.trigger_comment_id, f.id, f.priority, f.context,
        case when not f.fresh then f.session_id end, case when not f.fresh then f.work_dir end,
        f.attempt + 1,
        -- waiting for the quota to come back uses no attempt up, within reason
        case when f.resume_at is null then f.max_attempts
             else greatest(f.max_attempts, least(f.max_attempts + 1, 10)) end,
        -- a rerun goes on in the session that is its own by now
        f.trigger_summary, f.fresh or (f.force_fresh_session and f.session_id is null),
        f.is_leader_task, f.initiator_type, f.initiator_id, f.handoff_note, f.depth, f.resume_at
    from failed f
    join agent a on a.id = f.agent_id
    where f.retry
    -- a follow-up that is queued already does the work
    on conflict (issue_id, agent_id) where status in ('queued', 'dispatched') do nothing
    returning *
), revoked as (
    -- an agent whose machine is only out of reach goes on with its token (see go_on)
    delete from task_token k using failed f
    where k.task_id = f.id and not (f.presumed and f.failure_reason = 'runtime_offline')
    returning k.token_hash
), posted as (
    insert into comment (issue_id, workspace_id, author_type, author_id, content, type, parent_id,
                         source_task_id)
    select f.issue_id, f.workspace_id, 'agent', f.agent_id, f.comment, 'system',
           f.trigger_comment_id, f.id
    from failed f
    where f.issue_id is not null and f.comment <> '' and not f.retry
    returning *
), freed as (
    update agent a set status = 'idle', updated_at = statement_timestamp()
    where a.id in (select agent_id from failed) and a.status <> 'idle'
      and not exists (select from agent_task_queue q
                      where q.agent_id = a.id and q.id not in (select id from failed)
                        and q.status in ('dispatched', 'waiting_local_directory', 'running'))
    returning a.*
), next as (
    -- what the place that has become free is for; the retries are told of themselves
    select a.runtime_id, q.id
    from agent a
    cross join lateral (
        select q.id from agent_task_queue q
        where q.agent_id = a.id and q.status = 'queued'
          and (q.not_before is null or q.not_before <= statement_timestamp())
          and q.id not in (select id from failed)
        order by q.priority desc, q.created_at
        limit 1
    ) q
    where a.id in (select agent_id from failed) and a.archived_at is null
)
select array(select to_jsonb(x) from failed x) as tasks,
       array(select to_jsonb(x) from next x) as next,
       array(select to_jsonb(x) from posted x) as comments,
       array(select to_jsonb(x) from freed x) as agents,
       array(select token_hash from revoked) as tokens,
       array(select to_jsonb(x) from retried x) as retries;

-- name: cancel
-- $1 tasks
with cancelled as (
    update agent_task_queue
    set status = 'cancelled', completed_at = statement_timestamp(),
        prepare_lease_expires_at = null, wait_reason = null, unreachable_since = null
    where id = any($1::uuid[]) and status not in ('completed', 'failed', 'cancelled')
    returning *
), revoked as (
    delete from task_token k using cancelled c where k.task_id = c.id returning k.token_hash
), freed as (
    update agent a set status = 'idle', updated_at = statement_timestamp()
    where a.id in (select agent_id from cancelled) and a.status <> 'idle'
      and not exists (select from agent_task_queue q
                      where q.agent_id = a.id and q.id not in (select id from cancelled)
                        and q.status in ('dispatched', 'waiting_local_directory', 'running'))
    returning a.*
), next as (
    -- what the place that has become free is for; the retries are told of themselves
    select a.runtime_id, q.id
    from agent a
    cross join lateral (
        select q.id from agent_task_queue q
        where q.agent_id = a.id and q.status = 'queued'
          and (q.not_before is null or q.not_before <= statement_timestamp())
          and q.id not in (select id from cancelled)
        order by q.priority desc, q.created_at
        limit 1
    ) q
    where a.id in (select agent_id from cancelled) and a.archived_at is null
)
select array(select to_jsonb(x) from cancelled x) as tasks,
       array(select to_jsonb(x) from next x) as next,
       '{}'::jsonb[] as comments,
       array(select to_jsonb(x) from freed x) as agents,
       array(select token_hash from revoked) as tokens,
       '{}'::jsonb[] as retries;

-- name: reopen_threads
-- A new reply brings resolved threads back. $1 the comments replied to
with recursive up as (
    select id, parent_id from comment where id = any($1::uuid[])
    union
    select c.id, c.parent_id from comment c join up on c.id = up.parent_id
)
update comment c
set resolved_at = null, resolved_by_type = null, resolved_by_id = null
where c.id in (select id from up where parent_id is null) and c.resolved_at is not null
returning c.*, c.content as shown;

-- name: active_of_issue
-- $1 issues, $2 only this agent's, or null
select id from agent_task_queue
where issue_id = any($1::uuid[]) and ($2::uuid is null or agent_id = $2::uuid)
  and status in ('queued', 'dispatched', 'waiting_local_directory', 'running');

-- name: active_of_agent
select id from agent_task_queue
where agent_id = $1
  and status in ('queued', 'dispatched', 'waiting_local_directory', 'running');

-- name: active_of_chat
select id from agent_task_queue
where chat_session_id = $1
  and status in ('queued', 'dispatched', 'waiting_local_directory', 'running');

-- name: active_of_autopilot
-- The bare tasks of an autopilot's runs; those on issues hang from the issues, which stay.
select t.id
from autopilot_run r
join agent_task_queue t on t.autopilot_run_id = r.id
where r.autopilot_id = $1
  and t.status in ('queued', 'dispatched', 'waiting_local_directory', 'running');

-- name: active_of_trigger
-- With what the replies below it have started, if they go too. $1 comment, $2 whether they do
with recursive down as (
    select id from comment where id = $1
    union all
    select c.id from comment c join down d on c.parent_id = d.id where $2::boolean
)
select id from agent_task_queue
where trigger_comment_id in (select id from down)
  and status in ('queued', 'dispatched', 'waiting_local_directory', 'running');

-- name: in_flight_of_runtime
-- $1 runtime, $2 user, $3 bound. No task: one row without a task.
select r.id, t.id as task_id,
       {own r} as allowed
from agent_runtime r
left join agent_task_queue t on t.runtime_id = r.id
    and t.status in ('dispatched', 'waiting_local_directory', 'running')
where r.id = $1;

-- name: reset_issues
-- Issues that nobody works on any more go back to where they are picked up from; the timeline says so.
with reset as (
    update issue i set status = 'todo', updated_at = statement_timestamp()
    where i.id = any($1::uuid[]) and i.status = 'in_progress'
      and not exists (select from agent_task_queue q
                      where q.issue_id = i.id
                        and q.status in ('queued', 'dispatched', 'waiting_local_directory',
                                         'running'))
    returning i.*
), logged as (
    insert into activity_log (workspace_id, issue_id, actor_type, actor_id, action, details)
    select r.workspace_id, r.id, 'system', '00000000-0000-0000-0000-000000000000',
           'status_changed', '{"from": "in_progress", "to": "todo", "handed_back": true}'
    from reset r
    returning *
)
select r.*, w.issue_prefix, to_jsonb(l) as activity
from reset r join workspace w on w.id = r.workspace_id join logged l on l.issue_id = r.id;

-- name: resume_issue
-- An issue that was handed back because of a task that runs after all is in progress again, unless
-- somebody has moved it since. $1 issue
with resumed as (
    update issue i set status = 'in_progress', updated_at = statement_timestamp()
    where i.id = $1 and i.status = 'todo'
      and (select l.details ->> 'handed_back' from activity_log l
           where l.issue_id = i.id and l.action = 'status_changed'
           order by l.created_at desc, l.id desc
           limit 1) = 'true'
    returning i.*
), logged as (
    insert into activity_log (workspace_id, issue_id, actor_type, actor_id, action, details)
    select r.workspace_id, r.id, 'system', '00000000-0000-0000-0000-000000000000',
           'status_changed', '{"from": "todo", "to": "in_progress"}'
    from resumed r
    returning *
)
select r.*, w.issue_prefix, to_jsonb(l) as activity
from resumed r join workspace w on w.id = r.workspace_id join logged l on l.issue_id = r.id;

-- name: acknowledge_cancel
-- The first word stands. $1 task
update agent_task_queue set cancel_acked_at = coalesce(cancel_acked_at, statement_timestamp())
where id = $1 and status = 'cancelled'
returning id;
