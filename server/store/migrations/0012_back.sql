-- When a task's machine could be reached again, or the task was taken back with it: how long its agent
-- has said nothing counts from there, and so do the attempts that were to replace it.
alter table agent_task_queue add column back_at timestamptz;

-- Whose agents may still be at work, and keep their tokens for it.
create index task_away on agent_task_queue (completed_at)
    where presumed and status = 'failed' and failure_reason = 'runtime_offline' and late is null;

-- A task remembers its chat when that is deleted: what its agent still says is nobody else's business.
alter table agent_task_queue drop constraint agent_task_queue_chat_session_id_fkey;
