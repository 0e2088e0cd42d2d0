-- A task remembers the autopilot's run it was for, and the machine it ran on, when those are deleted:
-- otherwise the one becomes a quick-create without a sentence, and the other takes its history along.
-- What hangs from them is ended where they are deleted (finish.cancel_autopilot, web/runtimes_api).
alter table agent_task_queue drop constraint agent_task_queue_autopilot_run_id_fkey;
alter table agent_task_queue drop constraint agent_task_queue_runtime_id_fkey;
-- A chat remembers where its session is kept, in the same way.
alter table chat_session drop constraint chat_session_runtime_id_fkey;

-- What has become of tasks that way until now: nobody is to be paid for them.
with emptied as (
    update agent_task_queue
    set status = 'cancelled', completed_at = statement_timestamp(),
        prepare_lease_expires_at = null, wait_reason = null, unreachable_since = null
    where status in ('queued', 'dispatched', 'waiting_local_directory', 'running')
      and num_nonnulls(issue_id, chat_session_id, autopilot_run_id) = 0
      and coalesce(context ->> 'type', '') <> 'quick_create'
    returning id
)
delete from task_token k using emptied e where k.task_id = e.id;
