-- The tables of spec 02 §1 that the first release needs, shaped so that the later ones fit.
-- Ids are random UUIDs; times are timestamptz. "cascade" where a row has no meaning without its
-- parent, "set null" where its history stays readable. Every foreign key has an index that serves it.

create table app_user (
    id uuid primary key default gen_random_uuid(),
    name text not null,
    email text not null unique,
    avatar_url text,
    language text,
    timezone text,
    profile_description text not null default '',
    onboarded_at timestamptz,
    onboarding_questionnaire jsonb not null default '{}',
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now()
);

create table workspace (
    id uuid primary key default gen_random_uuid(),
    name text not null,
    slug text not null unique,
    description text,
    context text,
    settings jsonb not null default '{}',
    repos jsonb not null default '[]',
    issue_prefix text not null default '',
    issue_counter int not null default 0,
    avatar_url text,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now()
);

create table member (
    id uuid primary key default gen_random_uuid(),
    workspace_id uuid not null references workspace on delete cascade,
    user_id uuid not null references app_user on delete cascade,
    role text not null check (role in ('owner', 'admin', 'member')),
    created_at timestamptz not null default now(),
    unique (workspace_id, user_id)
);
create index member_user on member (user_id, workspace_id);

-- Tokens: only the SHA-256 of the whole token string is kept.
create table personal_access_token (
    id uuid primary key default gen_random_uuid(),
    user_id uuid not null references app_user on delete cascade,
    token_hash text not null unique,
    token_prefix text not null,
    name text not null,
    expires_at timestamptz,
    last_used_at timestamptz,
    revoked boolean not null default false,
    created_at timestamptz not null default now()
);
create index personal_access_token_user on personal_access_token (user_id);

create table daemon_token (
    id uuid primary key default gen_random_uuid(),
    workspace_id uuid not null references workspace on delete cascade,
    daemon_id text not null,
    token_hash text not null unique,
    expires_at timestamptz not null,
    created_at timestamptz not null default now()
);
create index daemon_token_workspace on daemon_token (workspace_id, daemon_id);

-- A link that signs a browser in once: minted by an authenticated caller, spent by opening it.
create table sign_in_link (
    code_hash text primary key,
    user_id uuid not null references app_user on delete cascade,
    expires_at timestamptz not null,
    used_at timestamptz,
    created_at timestamptz not null default now()
);
create index sign_in_link_user on sign_in_link (user_id);

create table runtime_profile (
    id uuid primary key default gen_random_uuid(),
    workspace_id uuid not null references workspace on delete cascade,
    display_name text not null,
    protocol_family text not null,
    command_name text not null,
    description text,
    fixed_args jsonb not null default '[]',
    visibility text not null default 'workspace',
    created_by uuid,
    enabled boolean not null default true,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    unique (workspace_id, display_name)
);

create table agent_runtime (
    id uuid primary key default gen_random_uuid(),
    workspace_id uuid not null references workspace on delete cascade,
    daemon_id text,
    name text not null,
    runtime_mode text not null default 'local',
    provider text not null,
    status text not null default 'offline' check (status in ('online', 'offline')),
    device_info text not null default '',
    metadata jsonb not null default '{}',
    last_seen_at timestamptz,
    owner_id uuid references app_user on delete set null,
    legacy_daemon_id text,
    visibility text not null default 'private' check (visibility in ('private', 'public')),
    profile_id uuid,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now()
);
create unique index agent_runtime_builtin on agent_runtime (workspace_id, daemon_id, provider)
    where profile_id is null;
create unique index agent_runtime_profile on agent_runtime (workspace_id, daemon_id, profile_id)
    where profile_id is not null;
create index agent_runtime_owner on agent_runtime (owner_id);
create index agent_runtime_seen on agent_runtime (last_seen_at) where status = 'online';

create table agent (
    id uuid primary key default gen_random_uuid(),
    workspace_id uuid not null references workspace on delete cascade,
    name text not null,
    description text not null default '',
    instructions text not null default '',
    avatar_url text,
    runtime_mode text not null default 'local',
    runtime_id uuid not null references agent_runtime on delete restrict,
    runtime_config jsonb not null default '{}',
    custom_env jsonb not null default '{}',
    custom_args jsonb not null default '[]',
    mcp_config jsonb,
    model text,
    thinking_level text,
    visibility text not null default 'private' check (visibility in ('private', 'workspace')),
    status text not null default 'offline'
        check (status in ('idle', 'working', 'blocked', 'error', 'offline')),
    max_concurrent_tasks int not null default 6 check (max_concurrent_tasks between 1 and 1000),
    owner_id uuid references app_user on delete set null,
    archived_at timestamptz,
    archived_by uuid,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    constraint agent_workspace_name_unique unique (workspace_id, name)
);
create index agent_runtime_id on agent (runtime_id);
create index agent_owner on agent (owner_id);

create table issue (
    id uuid primary key default gen_random_uuid(),
    workspace_id uuid not null references workspace on delete cascade,
    number int not null,
    title text not null,
    description text,
    status text not null default 'todo' check (status in
        ('backlog', 'todo', 'in_progress', 'in_review', 'done', 'blocked', 'cancelled')),
    priority text not null default 'none'
        check (priority in ('urgent', 'high', 'medium', 'low', 'none')),
    assignee_type text check (assignee_type in ('member', 'agent', 'squad')),
    assignee_id uuid,
    creator_type text not null check (creator_type in ('member', 'agent')),
    creator_id uuid not null,
    parent_issue_id uuid references issue on delete set null,
    project_id uuid,
    stage int check (stage >= 1),
    position double precision not null default 0,
    start_date date,
    due_date date,
    metadata jsonb not null default '{}',
    origin_type text,
    origin_id uuid,
    first_executed_at timestamptz,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    unique (workspace_id, number),
    check ((assignee_type is null) = (assignee_id is null))
);
create index issue_board on issue (workspace_id, status, position);
create index issue_assignee on issue (assignee_id) where assignee_id is not null;
create index issue_parent on issue (parent_issue_id) where parent_issue_id is not null;
create index issue_project on issue (project_id) where project_id is not null;
create index issue_origin on issue (origin_type, origin_id) where origin_type is not null;
-- The duplicate guard: titles that differ only in case and spacing are the same.
create function issue_title_key(title text) returns text language sql immutable strict parallel safe
    return lower(btrim(regexp_replace(title, '\s+', ' ', 'g')));
create index issue_open_title on issue (workspace_id, md5(issue_title_key(title)))
    where status not in ('done', 'cancelled');

create table comment (
    id uuid primary key default gen_random_uuid(),
    issue_id uuid not null references issue on delete cascade,
    workspace_id uuid not null references workspace on delete cascade,
    author_type text not null check (author_type in ('member', 'agent', 'system')),
    author_id uuid not null,
    content text not null,
    type text not null default 'comment'
        check (type in ('comment', 'status_change', 'progress_update', 'system')),
    parent_id uuid references comment on delete cascade,
    resolved_at timestamptz,
    resolved_by_type text,
    resolved_by_id uuid,
    source_task_id uuid,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    check ((resolved_at is null) = (resolved_by_type is null)
       and (resolved_at is null) = (resolved_by_id is null))
);
create index comment_issue on comment (issue_id, created_at, id);
create index comment_parent on comment (parent_id) where parent_id is not null;
create index comment_workspace on comment (workspace_id);

create table agent_task_queue (
    id uuid primary key default gen_random_uuid(),
    workspace_id uuid not null references workspace on delete cascade,
    agent_id uuid not null references agent on delete cascade,
    runtime_id uuid not null references agent_runtime on delete cascade,
    issue_id uuid references issue on delete cascade,
    chat_session_id uuid,
    autopilot_run_id uuid,
    trigger_comment_id uuid references comment on delete set null,
    parent_task_id uuid references agent_task_queue on delete set null,
    status text not null default 'queued' check (status in ('queued', 'dispatched',
        'waiting_local_directory', 'running', 'completed', 'failed', 'cancelled')),
    priority int not null default 0,
    created_at timestamptz not null default now(),
    dispatched_at timestamptz,
    started_at timestamptz,
    completed_at timestamptz,
    prepare_lease_expires_at timestamptz,
    result jsonb,
    error text,
    failure_reason text,
    context jsonb,
    session_id text,
    work_dir text,
    attempt int not null default 1,
    max_attempts int not null default 2,
    trigger_summary text,
    force_fresh_session boolean not null default false,
    is_leader_task boolean not null default false,
    wait_reason text,
    initiator_type text,
    initiator_id uuid,
    handoff_note text,
    progress jsonb
);
-- At most one pending task per (issue, agent): what coalesces triggers and survives every race.
create unique index task_pending_once on agent_task_queue (issue_id, agent_id)
    where status in ('queued', 'dispatched');
-- Claim candidates in the order they are claimed. By agent: a queued task follows its agent when
-- that moves to another runtime.
create index task_queued on agent_task_queue (agent_id, priority desc, created_at)
    where status = 'queued';
-- Capacity, serialisation and the agent's status.
create index task_in_flight on agent_task_queue (agent_id)
    where status in ('dispatched', 'waiting_local_directory', 'running');
-- Redelivery of claims whose answer was lost, recovery and sweeping of lost machines.
create index task_in_flight_runtime on agent_task_queue (runtime_id, dispatched_at)
    where status in ('dispatched', 'waiting_local_directory', 'running');
create index task_queued_since on agent_task_queue (created_at) where status = 'queued';
-- The newest resumable session of an (issue, agent); a task list of an issue.
create index task_issue on agent_task_queue (issue_id, agent_id, created_at desc);
create index task_agent on agent_task_queue (agent_id, created_at desc);
create index task_workspace on agent_task_queue (workspace_id, created_at desc);
create index task_trigger on agent_task_queue (trigger_comment_id)
    where trigger_comment_id is not null;
create index task_parent on agent_task_queue (parent_task_id) where parent_task_id is not null;
create index task_runtime on agent_task_queue (runtime_id);

create table task_token (
    token_hash text primary key,
    task_id uuid not null references agent_task_queue on delete cascade,
    agent_id uuid not null references agent on delete cascade,
    workspace_id uuid not null references workspace on delete cascade,
    user_id uuid not null references app_user on delete cascade,
    expires_at timestamptz not null,
    created_at timestamptz not null default now()
);
create index task_token_task on task_token (task_id);
create index task_token_agent on task_token (agent_id);
create index task_token_workspace on task_token (workspace_id);
create index task_token_user on task_token (user_id);

-- The transcript. The primary key makes a batch that is sent twice harmless.
create table task_message (
    task_id uuid not null references agent_task_queue on delete cascade,
    seq int not null,
    type text not null,
    tool text,
    content text,
    input jsonb,
    output text,
    created_at timestamptz not null default now(),
    primary key (task_id, seq)
);

create table task_usage (
    task_id uuid not null references agent_task_queue on delete cascade,
    provider text not null default '',
    model text not null,
    input_tokens bigint not null default 0,
    output_tokens bigint not null default 0,
    cache_read_tokens bigint not null default 0,
    cache_write_tokens bigint not null default 0,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    primary key (task_id, provider, model)
);
