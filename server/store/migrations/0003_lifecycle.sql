-- What the server knows of a task beside its status, and issues whose automatic runs are paused.

alter table agent_task_queue
    -- its machine has been silent since then; it may come back
    add column unreachable_since timestamptz,
    -- failed on the server's own judgement: what the daemon says later is still welcome
    add column presumed boolean not null default false,
    -- what it did say later, beside the result that stands
    add column late jsonb,
    -- failed for now: the provider's quota comes back then, and so does a new attempt
    add column resume_at timestamptz,
    -- queued, and not to be claimed before
    add column not_before timestamptz,
    -- how often it was handed to a daemon
    add column deliveries int not null default 0,
    -- how many runs of agents lead up to it, each caused by the one before
    add column depth int not null default 0,
    -- the transcript's numbers before this run of its agent, which counts from 1 again
    add column seq_base int not null default 0;

create index task_parked on agent_task_queue (not_before)
    where status = 'queued' and not_before is not null;
create index task_unreachable on agent_task_queue (unreachable_since)
    where unreachable_since is not null;
-- What a machine that comes back may still report on.
create index task_presumed on agent_task_queue (runtime_id)
    where presumed and status = 'failed' and late is null;

alter table issue
    -- since then no run starts there by itself, because agents kept setting each other to work
    add column runs_paused_at timestamptz,
    -- a person had their say then: what agents did before no longer counts
    add column runs_resumed_at timestamptz;

-- What agents caused on an issue, and what an agent was caused to do, of late.
create index task_caused_issue on agent_task_queue (issue_id, created_at)
    where initiator_type = 'agent';
create index task_caused_agent on agent_task_queue (agent_id, created_at)
    where initiator_type = 'agent';
