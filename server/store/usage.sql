-- What runs used and how long they took (spec 02 §11.4). A day is one of the zone $2; the first of
-- the days asked for begins at $1.

-- name: zone_of
-- The user's own zone, or null.
select timezone from app_user where id = $1;

-- name: runtime_exists
select id from agent_runtime where workspace_id = $1 and id = $2;

-- name: runtime_daily
-- $3 runtime
select to_char(h.bucket_hour at time zone $2, 'YYYY-MM-DD') as date, h.provider, h.model,
       sum(h.input_tokens)::bigint as input_tokens, sum(h.output_tokens)::bigint as output_tokens,
       sum(h.cache_read_tokens)::bigint as cache_read_tokens,
       sum(h.cache_write_tokens)::bigint as cache_write_tokens
from task_usage_hourly h
where h.runtime_id = $3 and h.bucket_hour >= $1
group by 1, 2, 3
order by 1 desc, 2, 3;

-- name: runtime_by_agent
-- $3 runtime, $4 who looks
select h.agent_id, h.provider, h.model, sum(h.input_tokens)::bigint as input_tokens,
       sum(h.output_tokens)::bigint as output_tokens,
       sum(h.cache_read_tokens)::bigint as cache_read_tokens,
       sum(h.cache_write_tokens)::bigint as cache_write_tokens,
       sum(h.task_count)::int as task_count
from task_usage_hourly h
where h.runtime_id = $3 and h.bucket_hour >= $1 and $2::text is not null
group by 1, 2, 3
having coalesce((select may_use_agent(a.id, a.visibility, a.owner_id, a.workspace_id, $4::uuid)
                 from agent a where a.id = h.agent_id), true)
order by 1, 2, 3;

-- name: runtime_by_hour
-- $3 runtime
select extract(hour from h.bucket_hour at time zone $2)::int as hour, h.provider, h.model,
       sum(h.input_tokens)::bigint as input_tokens, sum(h.output_tokens)::bigint as output_tokens,
       sum(h.cache_read_tokens)::bigint as cache_read_tokens,
       sum(h.cache_write_tokens)::bigint as cache_write_tokens,
       sum(h.task_count)::int as task_count
from task_usage_hourly h
where h.runtime_id = $3 and h.bucket_hour >= $1
group by 1, 2, 3
order by 1, 2, 3;

-- name: runtime_activity
-- Runs that began in each hour of the day. $3 runtime
select extract(hour from t.started_at at time zone $2)::int as hour, count(*)::int as count
from agent_task_queue t
where t.runtime_id = $3 and t.started_at >= $1
group by 1
order by 1;

-- name: daily
-- $3 workspace, $4 project or null
select to_char(h.bucket_hour at time zone $2, 'YYYY-MM-DD') as date, h.provider, h.model,
       sum(h.input_tokens)::bigint as input_tokens, sum(h.output_tokens)::bigint as output_tokens,
       sum(h.cache_read_tokens)::bigint as cache_read_tokens,
       sum(h.cache_write_tokens)::bigint as cache_write_tokens,
       sum(h.task_count)::int as task_count
from task_usage_hourly h
where h.workspace_id = $3 and h.bucket_hour >= $1 and ($4::uuid is null or h.project_id = $4)
group by 1, 2, 3
order by 1 desc, 2, 3;

-- name: by_agent
-- $3 workspace, $4 project or null, $5 who looks
select h.agent_id, h.provider, h.model, sum(h.input_tokens)::bigint as input_tokens,
       sum(h.output_tokens)::bigint as output_tokens,
       sum(h.cache_read_tokens)::bigint as cache_read_tokens,
       sum(h.cache_write_tokens)::bigint as cache_write_tokens,
       sum(h.task_count)::int as task_count
from task_usage_hourly h
where h.workspace_id = $3 and h.bucket_hour >= $1 and ($4::uuid is null or h.project_id = $4)
  and $2::text is not null
group by 1, 2, 3
having coalesce((select may_use_agent(a.id, a.visibility, a.owner_id, a.workspace_id, $5::uuid)
                 from agent a where a.id = h.agent_id), true)
order by 1, 2, 3;

-- name: agent_time
-- $3 workspace, $4 project or null, $5 who looks
select t.agent_id,
       coalesce(sum(extract(epoch from t.completed_at - t.started_at)), 0)::bigint as total_seconds,
       count(*)::int as task_count,
       (count(*) filter (where t.status = 'failed'))::int as failed_count
from agent_task_queue t
left join issue i on i.id = t.issue_id
where t.workspace_id = $3 and t.completed_at >= $1 and t.status in ('completed', 'failed')
  and ($4::uuid is null or i.project_id = $4) and $2::text is not null
group by 1
having coalesce((select may_use_agent(a.id, a.visibility, a.owner_id, a.workspace_id, $5::uuid)
                 from agent a where a.id = t.agent_id), true)
order by 1;

-- name: daily_time
-- $3 workspace, $4 project or null
select to_char(t.completed_at at time zone $2, 'YYYY-MM-DD') as date,
       coalesce(sum(extract(epoch from t.completed_at - t.started_at)), 0)::bigint as total_seconds,
       count(*)::int as task_count,
       (count(*) filter (where t.status = 'failed'))::int as failed_count
from agent_task_queue t
left join issue i on i.id = t.issue_id
where t.workspace_id = $3 and t.completed_at >= $1 and t.status in ('completed', 'failed')
  and ($4::uuid is null or i.project_id = $4)
group by 1
order by 1 desc;

-- name: run_counts
-- $3 workspace, $4 who looks (null = whoever may see all agents)
select t.agent_id, count(*)::int as run_count
from agent_task_queue t join agent a on a.id = t.agent_id
where t.workspace_id = $3 and t.created_at >= $1 and $2::text is not null
  and may_use_agent(a.id, a.visibility, a.owner_id, a.workspace_id, $4::uuid)
group by 1
order by 1;

-- name: agent_days
-- $3 workspace, $4 who looks (null = whoever may see all agents)
select t.agent_id, date_trunc('day', t.completed_at at time zone $2) at time zone $2 as bucket_at,
       count(*)::int as task_count,
       (count(*) filter (where t.status = 'failed'))::int as failed_count
from agent_task_queue t join agent a on a.id = t.agent_id
where t.workspace_id = $3 and t.completed_at >= $1 and t.status in ('completed', 'failed')
  and may_use_agent(a.id, a.visibility, a.owner_id, a.workspace_id, $4::uuid)
group by 1, 2
order by 1, 2;

-- name: store_local
-- A day's totals by a machine's own logs; they replace what was told of that day before. $1 runtime,
-- $2 the entries
insert into runtime_usage as u (runtime_id, date, provider, model, input_tokens, output_tokens,
                                cache_read_tokens, cache_write_tokens)
select distinct on (2, 3, 4) $1::uuid, x.date, lower(trim(x.provider)), x.model, x.input_tokens,
       x.output_tokens, x.cache_read_tokens, x.cache_write_tokens
from jsonb_to_recordset($2::jsonb) as x (date date, provider text, model text, input_tokens bigint,
    output_tokens bigint, cache_read_tokens bigint, cache_write_tokens bigint)
on conflict (runtime_id, date, provider, model) do update
set input_tokens = excluded.input_tokens, output_tokens = excluded.output_tokens,
    cache_read_tokens = excluded.cache_read_tokens,
    cache_write_tokens = excluded.cache_write_tokens, updated_at = now();

-- name: local_daily
-- $1 the first day's beginning, $2 its zone, $3 runtime
select to_char(u.date, 'YYYY-MM-DD') as date, u.provider, u.model, u.input_tokens, u.output_tokens,
       u.cache_read_tokens, u.cache_write_tokens
from runtime_usage u
where u.runtime_id = $3 and u.date >= ($1::timestamptz at time zone $2)::date
order by u.date desc, u.provider, u.model;
