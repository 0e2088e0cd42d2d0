-- The rest of spec 02 §1: what people and agents share beside issues (projects, skills, squads,
-- chats, inboxes), what starts work by itself (autopilots), and what is counted (usage by the hour).
-- Every foreign key has an index that serves it, its columns first.

-- People ----------------------------------------------------------------------------------------

create table workspace_invitation (
    id uuid primary key default gen_random_uuid(),
    workspace_id uuid not null references workspace on delete cascade,
    inviter_id uuid references app_user on delete set null,
    invitee_email text not null,
    invitee_user_id uuid references app_user on delete cascade,
    role text not null check (role in ('admin', 'member')),
    status text not null default 'pending'
        check (status in ('pending', 'accepted', 'declined', 'expired')),
    expires_at timestamptz not null default now() + interval '7 days',
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now()
);
create unique index workspace_invitation_pending on workspace_invitation
    (workspace_id, lower(invitee_email)) where status = 'pending';
create index workspace_invitation_workspace on workspace_invitation (workspace_id, created_at desc);
create index workspace_invitation_inviter on workspace_invitation (inviter_id);
create index workspace_invitation_invitee on workspace_invitation (invitee_user_id);
create index workspace_invitation_email on workspace_invitation (lower(invitee_email));

-- A sign-in code sent by e-mail: only its hash is kept.
create table verification_code (
    id uuid primary key default gen_random_uuid(),
    email text not null,
    code_hash text not null,
    expires_at timestamptz not null,
    used boolean not null default false,
    attempts int not null default 0,
    created_at timestamptz not null default now()
);
create index verification_code_email on verification_code (lower(email), created_at desc);
create index verification_code_expiry on verification_code (expires_at);

create index daemon_token_expiry on daemon_token (expires_at);
create index task_token_expiry on task_token (expires_at);
create index sign_in_link_expiry on sign_in_link (expires_at);

-- Skills and squads -----------------------------------------------------------------------------

create table skill (
    id uuid primary key default gen_random_uuid(),
    workspace_id uuid not null references workspace on delete cascade,
    name text not null,
    description text not null default '',
    content text not null default '',
    config jsonb not null default '{}',
    created_by uuid references app_user on delete set null,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    constraint skill_workspace_name_unique unique (workspace_id, name)
);
create index skill_created_by on skill (created_by);

create table skill_file (
    id uuid primary key default gen_random_uuid(),
    skill_id uuid not null references skill on delete cascade,
    path text not null,
    content text not null,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    unique (skill_id, path)
);

create table agent_skill (
    agent_id uuid not null references agent on delete cascade,
    skill_id uuid not null references skill on delete cascade,
    created_at timestamptz not null default now(),
    primary key (agent_id, skill_id)
);
create index agent_skill_skill on agent_skill (skill_id);

create table squad (
    id uuid primary key default gen_random_uuid(),
    workspace_id uuid not null references workspace on delete cascade,
    name text not null,
    description text not null default '',
    instructions text not null default '',
    leader_id uuid not null references agent on delete restrict,
    creator_id uuid,
    avatar_url text,
    archived_at timestamptz,
    archived_by uuid,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now()
);
create index squad_workspace on squad (workspace_id, created_at);
create index squad_leader on squad (leader_id);

create table squad_member (
    id uuid primary key default gen_random_uuid(),
    squad_id uuid not null references squad on delete cascade,
    member_type text not null check (member_type in ('agent', 'member')),
    member_id uuid not null,
    role text not null default '',
    created_at timestamptz not null default now(),
    unique (squad_id, member_type, member_id)
);
create index squad_member_member on squad_member (member_type, member_id);

-- Projects and what hangs on issues -------------------------------------------------------------

create table project (
    id uuid primary key default gen_random_uuid(),
    workspace_id uuid not null references workspace on delete cascade,
    title text not null,
    description text,
    icon text,
    status text not null default 'planned' check (status in
        ('planned', 'in_progress', 'paused', 'completed', 'cancelled')),
    priority text not null default 'none'
        check (priority in ('urgent', 'high', 'medium', 'low', 'none')),
    lead_type text check (lead_type in ('member', 'agent')),
    lead_id uuid,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    check ((lead_type is null) = (lead_id is null))
);
create index project_workspace on project (workspace_id, created_at desc);

create table project_resource (
    id uuid primary key default gen_random_uuid(),
    project_id uuid not null references project on delete cascade,
    workspace_id uuid not null references workspace on delete cascade,
    resource_type text not null,
    resource_ref jsonb not null,
    label text,
    position int not null default 0,
    created_by uuid,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    unique (project_id, resource_type, resource_ref)
);
create index project_resource_order on project_resource (project_id, position);
create index project_resource_workspace on project_resource (workspace_id);

-- Until now nothing could set a project; what a direct write left dangling must not stop the key.
update issue set project_id = null where project_id is not null;
alter table issue add foreign key (project_id) references project on delete set null;
alter table issue add column acceptance_criteria jsonb not null default '[]';
alter table issue add column context_refs jsonb not null default '[]';

create table issue_label (
    id uuid primary key default gen_random_uuid(),
    workspace_id uuid not null references workspace on delete cascade,
    name text not null,
    color text not null default '',
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now()
);
create unique index issue_label_name on issue_label (workspace_id, lower(name));

create table issue_to_label (
    issue_id uuid not null references issue on delete cascade,
    label_id uuid not null references issue_label on delete cascade,
    created_at timestamptz not null default now(),
    primary key (issue_id, label_id)
);
create index issue_to_label_label on issue_to_label (label_id);

create table issue_dependency (
    id uuid primary key default gen_random_uuid(),
    issue_id uuid not null references issue on delete cascade,
    depends_on_issue_id uuid not null references issue on delete cascade,
    type text not null check (type in ('blocks', 'blocked_by', 'related')),
    created_at timestamptz not null default now(),
    unique (issue_id, depends_on_issue_id, type)
);
create index issue_dependency_other on issue_dependency (depends_on_issue_id);

create table issue_reaction (
    id uuid primary key default gen_random_uuid(),
    issue_id uuid not null references issue on delete cascade,
    workspace_id uuid not null references workspace on delete cascade,
    actor_type text not null check (actor_type in ('member', 'agent')),
    actor_id uuid not null,
    emoji text not null,
    created_at timestamptz not null default now(),
    unique (issue_id, actor_type, actor_id, emoji)
);
create index issue_reaction_workspace on issue_reaction (workspace_id);

create table comment_reaction (
    id uuid primary key default gen_random_uuid(),
    comment_id uuid not null references comment on delete cascade,
    workspace_id uuid not null references workspace on delete cascade,
    actor_type text not null check (actor_type in ('member', 'agent')),
    actor_id uuid not null,
    emoji text not null,
    created_at timestamptz not null default now(),
    unique (comment_id, actor_type, actor_id, emoji)
);
create index comment_reaction_workspace on comment_reaction (workspace_id);

create table pinned_item (
    id uuid primary key default gen_random_uuid(),
    workspace_id uuid not null references workspace on delete cascade,
    user_id uuid not null references app_user on delete cascade,
    item_type text not null check (item_type in ('issue', 'project')),
    item_id uuid not null,
    position double precision not null default 0,
    created_at timestamptz not null default now(),
    unique (workspace_id, user_id, item_type, item_id)
);
create index pinned_item_user on pinned_item (user_id);
create index pinned_item_item on pinned_item (item_id);

create table issue_subscriber (
    issue_id uuid not null references issue on delete cascade,
    user_type text not null check (user_type in ('member', 'agent')),
    user_id uuid not null,
    reason text not null check (reason in
        ('creator', 'assignee', 'commenter', 'mentioned', 'manual', 'autopilot')),
    created_at timestamptz not null default now(),
    primary key (issue_id, user_type, user_id)
);
create index issue_subscriber_user on issue_subscriber (user_type, user_id);

create table activity_log (
    id uuid primary key default gen_random_uuid(),
    workspace_id uuid not null references workspace on delete cascade,
    issue_id uuid references issue on delete cascade,
    actor_type text check (actor_type in ('member', 'agent', 'system')),
    actor_id uuid,
    action text not null,
    details jsonb not null default '{}',
    created_at timestamptz not null default now()
);
create index activity_log_issue on activity_log (issue_id, created_at desc, id desc);
create index activity_log_workspace on activity_log (workspace_id, created_at desc);
-- "Did the squad's leader decide to do nothing in this task?", asked at every completion.
create index activity_log_no_action on activity_log (issue_id, actor_id, (details ->> 'task_id'))
    where actor_type = 'agent' and action = 'squad_leader_evaluated'
      and details ->> 'outcome' = 'no_action';

create table inbox_item (
    id uuid primary key default gen_random_uuid(),
    workspace_id uuid not null references workspace on delete cascade,
    recipient_type text not null check (recipient_type in ('member', 'agent')),
    recipient_id uuid not null,
    type text not null,
    severity text not null default 'info'
        check (severity in ('action_required', 'attention', 'info')),
    issue_id uuid references issue on delete cascade,
    title text not null,
    body text,
    read boolean not null default false,
    archived boolean not null default false,
    actor_type text,
    actor_id uuid,
    details jsonb not null default '{}',
    created_at timestamptz not null default now()
);
create index inbox_item_recipient on inbox_item (recipient_type, recipient_id, workspace_id, created_at desc)
    where not archived;
create index inbox_item_issue on inbox_item (issue_id);
create index inbox_item_workspace on inbox_item (workspace_id);

create table notification_preference (
    id uuid primary key default gen_random_uuid(),
    workspace_id uuid not null references workspace on delete cascade,
    user_id uuid not null references app_user on delete cascade,
    preferences jsonb not null default '{}',
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    unique (workspace_id, user_id)
);
create index notification_preference_user on notification_preference (user_id);

-- Chat ------------------------------------------------------------------------------------------

create table chat_session (
    id uuid primary key default gen_random_uuid(),
    workspace_id uuid not null references workspace on delete cascade,
    agent_id uuid not null references agent on delete cascade,
    creator_id uuid not null references app_user on delete cascade,
    title text not null default '',
    status text not null default 'active' check (status in ('active', 'archived')),
    session_id text,
    work_dir text,
    runtime_id uuid references agent_runtime on delete set null,
    unread_since timestamptz,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now()
);
create index chat_session_creator on chat_session (creator_id, workspace_id, updated_at desc);
create index chat_session_workspace on chat_session (workspace_id);
create index chat_session_agent on chat_session (agent_id);
create index chat_session_runtime on chat_session (runtime_id);

create table chat_message (
    id uuid primary key default gen_random_uuid(),
    chat_session_id uuid not null references chat_session on delete cascade,
    role text not null check (role in ('user', 'assistant')),
    content text not null,
    task_id uuid,
    failure_reason text,
    elapsed_ms bigint,
    created_at timestamptz not null default now()
);
create index chat_message_session on chat_message (chat_session_id, created_at, id);
create index chat_message_task on chat_message (task_id) where task_id is not null;

create table attachment (
    id uuid primary key default gen_random_uuid(),
    workspace_id uuid not null references workspace on delete cascade,
    issue_id uuid references issue on delete cascade,
    comment_id uuid references comment on delete cascade,
    chat_session_id uuid references chat_session on delete cascade,
    chat_message_id uuid references chat_message on delete cascade,
    uploader_type text not null check (uploader_type in ('member', 'agent')),
    uploader_id uuid not null,
    filename text not null,
    url text not null,
    content_type text not null,
    size_bytes bigint not null,
    created_at timestamptz not null default now()
);
create index attachment_workspace on attachment (workspace_id);
create index attachment_issue on attachment (issue_id) where issue_id is not null;
create index attachment_comment on attachment (comment_id) where comment_id is not null;
create index attachment_chat_session on attachment (chat_session_id) where chat_session_id is not null;
create index attachment_chat_message on attachment (chat_message_id) where chat_message_id is not null;

-- Autopilots ------------------------------------------------------------------------------------

create table autopilot (
    id uuid primary key default gen_random_uuid(),
    workspace_id uuid not null references workspace on delete cascade,
    title text not null,
    description text,
    assignee_type text not null default 'agent' check (assignee_type in ('agent', 'squad')),
    assignee_id uuid not null,
    status text not null default 'active' check (status in ('active', 'paused', 'archived')),
    execution_mode text not null check (execution_mode in ('create_issue', 'run_only')),
    issue_title_template text,
    project_id uuid references project on delete set null,
    created_by_type text not null check (created_by_type in ('member', 'agent')),
    created_by_id uuid not null,
    last_run_at timestamptz,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now()
);
create index autopilot_workspace on autopilot (workspace_id, created_at desc);
create index autopilot_assignee on autopilot (assignee_id);
create index autopilot_project on autopilot (project_id);

create table autopilot_trigger (
    id uuid primary key default gen_random_uuid(),
    autopilot_id uuid not null references autopilot on delete cascade,
    kind text not null check (kind in ('schedule', 'webhook', 'api')),
    enabled boolean not null default true,
    cron_expression text,
    timezone text not null default 'UTC',
    next_run_at timestamptz,
    last_fired_at timestamptz,
    label text,
    webhook_token text,
    provider text not null default 'generic' check (provider in ('generic', 'github')),
    signing_secret text,
    event_filters jsonb,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now()
);
create index autopilot_trigger_autopilot on autopilot_trigger (autopilot_id);
create unique index autopilot_trigger_token on autopilot_trigger (webhook_token)
    where webhook_token is not null;
create index autopilot_trigger_schedule on autopilot_trigger (next_run_at)
    where kind = 'schedule' and enabled;

create table autopilot_run (
    id uuid primary key default gen_random_uuid(),
    autopilot_id uuid not null references autopilot on delete cascade,
    trigger_id uuid references autopilot_trigger on delete set null,
    source text not null check (source in ('schedule', 'manual', 'webhook', 'api')),
    status text not null check (status in
        ('issue_created', 'running', 'completed', 'failed', 'skipped')),
    issue_id uuid references issue on delete set null,
    task_id uuid references agent_task_queue on delete set null,
    squad_id uuid references squad on delete set null,
    planned_at timestamptz,
    triggered_at timestamptz not null default now(),
    completed_at timestamptz,
    failure_reason text,
    trigger_payload jsonb,
    result jsonb,
    created_at timestamptz not null default now()
);
create index autopilot_run_autopilot on autopilot_run (autopilot_id, triggered_at desc);
create index autopilot_run_trigger on autopilot_run (trigger_id);
create unique index autopilot_run_planned on autopilot_run (trigger_id, planned_at)
    where planned_at is not null;
create index autopilot_run_issue on autopilot_run (issue_id) where issue_id is not null;
create index autopilot_run_task on autopilot_run (task_id) where task_id is not null;
create index autopilot_run_squad on autopilot_run (squad_id) where squad_id is not null;

create table autopilot_subscriber (
    autopilot_id uuid not null references autopilot on delete cascade,
    user_type text not null default 'member' check (user_type = 'member'),
    user_id uuid not null references app_user on delete cascade,
    created_at timestamptz not null default now(),
    primary key (autopilot_id, user_type, user_id)
);
create index autopilot_subscriber_user on autopilot_subscriber (user_id);

create table webhook_delivery (
    id uuid primary key default gen_random_uuid(),
    workspace_id uuid not null references workspace on delete cascade,
    autopilot_id uuid not null references autopilot on delete cascade,
    trigger_id uuid not null references autopilot_trigger on delete cascade,
    provider text not null,
    event text,
    dedupe_key text,
    signature_status text not null default 'not_required'
        check (signature_status in ('not_required', 'valid', 'invalid', 'missing')),
    status text not null check (status in
        ('queued', 'dispatched', 'rejected', 'ignored', 'failed')),
    attempt_count int not null default 0,
    headers jsonb not null default '{}',
    content_type text,
    raw_body bytea,
    response_status int,
    autopilot_run_id uuid references autopilot_run on delete set null,
    replayed_from_id uuid references webhook_delivery on delete set null,
    error text,
    received_at timestamptz not null default now(),
    last_attempt_at timestamptz,
    created_at timestamptz not null default now()
);
create unique index webhook_delivery_once on webhook_delivery (trigger_id, dedupe_key)
    where dedupe_key is not null and status not in ('rejected', 'failed');
create index webhook_delivery_trigger on webhook_delivery (trigger_id);
create index webhook_delivery_autopilot on webhook_delivery (autopilot_id, received_at desc);
create index webhook_delivery_workspace on webhook_delivery (workspace_id);
create index webhook_delivery_run on webhook_delivery (autopilot_run_id);
create index webhook_delivery_replayed on webhook_delivery (replayed_from_id);
create index webhook_delivery_age on webhook_delivery (received_at);

-- The queue's links -----------------------------------------------------------------------------

update agent_task_queue set chat_session_id = null where chat_session_id is not null;
update agent_task_queue set autopilot_run_id = null where autopilot_run_id is not null;
alter table agent_task_queue
    add foreign key (chat_session_id) references chat_session on delete set null,
    add foreign key (autopilot_run_id) references autopilot_run on delete set null;
create index task_chat on agent_task_queue (chat_session_id, created_at desc)
    where chat_session_id is not null;
create index task_autopilot_run on agent_task_queue (autopilot_run_id)
    where autopilot_run_id is not null;
create index task_completed on agent_task_queue (completed_at) where completed_at is not null;

-- Usage by the hour -----------------------------------------------------------------------------

create table task_usage_hourly (
    bucket_hour timestamptz not null,
    workspace_id uuid not null references workspace on delete cascade,
    runtime_id uuid not null,
    agent_id uuid not null,
    project_id uuid,
    provider text not null,
    model text not null,
    input_tokens bigint not null default 0,
    output_tokens bigint not null default 0,
    cache_read_tokens bigint not null default 0,
    cache_write_tokens bigint not null default 0,
    task_count int not null default 0,
    event_count int not null default 0,
    updated_at timestamptz not null default now(),
    unique nulls not distinct
        (workspace_id, bucket_hour, runtime_id, agent_id, project_id, provider, model)
);
create index task_usage_hourly_runtime on task_usage_hourly (runtime_id, bucket_hour desc);
create index task_usage_hourly_agent on task_usage_hourly (agent_id, bucket_hour desc);
create index task_usage_hourly_project on task_usage_hourly (project_id, bucket_hour desc)
    where project_id is not null;
create index task_usage_updated on task_usage (updated_at);
