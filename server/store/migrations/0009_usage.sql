-- Usage by the hour is kept as it is reported, in the same transaction: exact at every moment, no
-- job, no lag. What was used stays counted when a task, an agent or a machine is deleted.

create function roll_up_usage() returns trigger language plpgsql as $$
begin
    insert into task_usage_hourly as h (bucket_hour, workspace_id, runtime_id, agent_id, project_id,
        provider, model, input_tokens, output_tokens, cache_read_tokens, cache_write_tokens,
        task_count, event_count)
    select date_trunc('hour', new.created_at at time zone 'UTC') at time zone 'UTC',
           t.workspace_id, t.runtime_id, t.agent_id, i.project_id, new.provider, new.model,
           new.input_tokens - coalesce(old.input_tokens, 0),
           new.output_tokens - coalesce(old.output_tokens, 0),
           new.cache_read_tokens - coalesce(old.cache_read_tokens, 0),
           new.cache_write_tokens - coalesce(old.cache_write_tokens, 0),
           (tg_op = 'INSERT')::int, 1
    from agent_task_queue t
    left join issue i on i.id = t.issue_id
    where t.id = new.task_id
    on conflict (workspace_id, bucket_hour, runtime_id, agent_id, project_id, provider, model)
    do update set
        input_tokens = h.input_tokens + excluded.input_tokens,
        output_tokens = h.output_tokens + excluded.output_tokens,
        cache_read_tokens = h.cache_read_tokens + excluded.cache_read_tokens,
        cache_write_tokens = h.cache_write_tokens + excluded.cache_write_tokens,
        task_count = h.task_count + excluded.task_count,
        event_count = h.event_count + excluded.event_count,
        updated_at = now();
    return null;
end $$;

create trigger task_usage_roll_up after insert or update on task_usage
    for each row execute function roll_up_usage();

-- What was reported before.
insert into task_usage_hourly (bucket_hour, workspace_id, runtime_id, agent_id, project_id,
    provider, model, input_tokens, output_tokens, cache_read_tokens, cache_write_tokens,
    task_count, event_count)
select date_trunc('hour', u.created_at at time zone 'UTC') at time zone 'UTC', t.workspace_id,
       t.runtime_id, t.agent_id, i.project_id, u.provider, u.model, sum(u.input_tokens),
       sum(u.output_tokens), sum(u.cache_read_tokens), sum(u.cache_write_tokens), count(*), count(*)
from task_usage u
join agent_task_queue t on t.id = u.task_id
left join issue i on i.id = t.issue_id
group by 1, 2, 3, 4, 5, 6, 7;

-- How long runs took, by day, for the dashboards.
create index task_ended_workspace on agent_task_queue (workspace_id, completed_at)
    where status in ('completed', 'failed');
