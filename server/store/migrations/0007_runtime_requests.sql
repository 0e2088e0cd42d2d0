-- What people ask of a machine between tasks: which models, which skills, an update, a sign of
-- life. Kept here, a request survives a lost answer and a restart of the server.
create table runtime_request (
    id text primary key,
    runtime_id uuid not null references agent_runtime on delete cascade,
    kind text not null check (kind in ('update', 'models', 'local_skills', 'import', 'ping')),
    status text not null default 'pending'
        check (status in ('pending', 'running', 'completed', 'failed', 'conflict')),
    params jsonb not null default '{}',
    result jsonb not null default '{}',
    error text,
    created_by uuid references app_user on delete set null,
    -- until when it may wait to be handed out, and after that until when its result may come
    expires_at timestamptz not null,
    run_limit interval not null,
    handed_at timestamptz,
    -- the daemon has said that it is at it: it is not handed out again
    acknowledged boolean not null default false,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now()
);
create index runtime_request_open on runtime_request (runtime_id, kind, created_at)
    where status in ('pending', 'running');
create index runtime_request_runtime on runtime_request (runtime_id, created_at);
create index runtime_request_created_by on runtime_request (created_by);
