-- What is measured of the database's state, and what the counters of tasks are labelled with (spec 02
-- §11.5).

-- name: tasks
-- What became of some tasks. $1 tasks
select t.id, t.failure_reason, t.attempt, t.created_at, t.not_before, t.dispatched_at, t.started_at,
       t.completed_at, coalesce(r.provider, '') as provider,
       coalesce(r.runtime_mode, 'local') as runtime_mode,
       case when t.chat_session_id is not null then 'chat'
            when t.autopilot_run_id is not null then 'autopilot'
            when t.issue_id is null then 'quick_create'
            when i.origin_type = 'autopilot' then 'autopilot_issue'
            else 'issue' end as source,
       coalesce(i.first_executed_at = t.completed_at, false) as first_of_issue
from agent_task_queue t
left join agent_runtime r on r.id = t.runtime_id
left join issue i on i.id = t.issue_id
where t.id = any($1::uuid[]);

-- name: queue
-- What waits and what runs; stuck is what has waited for half an hour.
select r.provider, r.runtime_mode,
       count(*) filter (where t.status = 'queued') as queued,
       count(*) filter (where t.status <> 'queued') as running,
       count(*) filter (where t.status in ('queued', 'dispatched')
                        and greatest(t.created_at, t.not_before, t.dispatched_at)
                            < now() - interval '30 minutes') as stuck
from agent_task_queue t
join agent_runtime r on r.id = t.runtime_id
where t.status in ('queued', 'dispatched', 'waiting_local_directory', 'running')
group by r.provider, r.runtime_mode
order by count(*) desc
limit 100;

-- name: runtimes
-- Machines by how long ago they were heard: the number of the first of the limits in $1 that holds
-- them, how many of them there are, and their ages together.
select r.provider, r.runtime_mode, width_bucket(age.seconds, $1::double precision[]) as place,
       count(*) as count, sum(age.seconds) as seconds,
       count(*) filter (where age.seconds < 60) as online
from agent_runtime r
cross join lateral (
    select greatest(0, extract(epoch from now() - r.last_seen_at))::double precision as seconds
) age
where r.status = 'online' and r.last_seen_at is not null
group by 1, 2, 3
order by 1, 2, 3
limit 1000;

-- name: workspaces
select count(*) from workspace;
