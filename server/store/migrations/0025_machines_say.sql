-- What people call a machine's runtime, whatever its daemon calls it.
alter table agent_runtime add column custom_name text;

-- When a daemon said that it has stopped the agent of a task that was cancelled.
alter table agent_task_queue add column cancel_acked_at timestamptz;

-- What the agent programs of a machine have used by their own logs, by day: runs and everything else
-- its owner did with them. Kept apart from what runs report, which it contains.
create table runtime_usage (
    runtime_id uuid not null references agent_runtime on delete cascade,
    date date not null,
    provider text not null,
    model text not null,
    input_tokens bigint not null default 0,
    output_tokens bigint not null default 0,
    cache_read_tokens bigint not null default 0,
    cache_write_tokens bigint not null default 0,
    updated_at timestamptz not null default now(),
    primary key (runtime_id, date, provider, model)
);
