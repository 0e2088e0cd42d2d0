-- Conversations of one person with one agent (spec 02 §1.5, §3.7).

-- name: list_sessions
-- $1 workspace, $2 whose, $3 also archived ones, $4 one of them
select *, unread_since is not null as has_unread from chat_session
where workspace_id = $1 and creator_id = $2 and ($3 or status = 'active' or id = $4)
  and ($4::uuid is null or id = $4)
order by updated_at desc, id
limit 500;

-- name: find_session
-- One, whoever's it is. $1 workspace, $2 session
select c.*, c.unread_since is not null as has_unread, a.visibility, a.owner_id,
       a.archived_at is not null as archived
from chat_session c join agent a on a.id = c.agent_id
where c.workspace_id = $1 and c.id = $2;

-- name: lock_session
select id from chat_session where id = $1 for no key update;

-- name: create_session
insert into chat_session (workspace_id, agent_id, creator_id, title, runtime_id)
select $1, a.id, $2, $3, a.runtime_id from agent a where a.id = $4
returning *, false as has_unread;

-- name: rename_session
update chat_session set title = $2, updated_at = now() where id = $1
returning *, unread_since is not null as has_unread;

-- name: read_session
update chat_session set unread_since = null where id = $1;

-- name: delete_session
-- With what its runs said.
with cleared as (
    update agent_task_queue set result = null, error = null, late = null where chat_session_id = $1
    returning id
), unsaid as (
    delete from task_message m using cleared c where m.task_id = c.id
)
delete from chat_session where id = $1;

-- name: say
-- A message, with the task that is to answer it: one that still waits in the session takes it along,
-- else a new one. $1 session, $2 content, $3 who says it, $4 attachments
with session as (
    select * from chat_session where id = $1
), waiting as (
    select t.* from agent_task_queue t
    where t.chat_session_id = $1 and t.status = 'queued'
    order by t.created_at limit 1
    for no key update
), queued as (
    insert into agent_task_queue (workspace_id, agent_id, runtime_id, chat_session_id, priority,
                                  initiator_type, initiator_id)
    select s.workspace_id, s.agent_id, a.runtime_id, s.id, 2, 'member', $3
    from session s join agent a on a.id = s.agent_id
    where not exists (select from waiting)
    returning *
), task as (
    select * from waiting union all select * from queued
), said as (
    insert into chat_message (chat_session_id, role, content, task_id)
    select s.id, 'user', $2, task.id from session s, task
    returning *
), bound as (
    update attachment f set chat_session_id = $1, chat_message_id = said.id
    from said, session s
    where f.id = any($4::uuid[]) and f.workspace_id = s.workspace_id
      and f.uploader_type = 'member' and f.uploader_id = $3
      and f.chat_message_id is null and f.issue_id is null and f.comment_id is null
    returning f.id
), touched as (
    update chat_session c set updated_at = now() from session s where c.id = s.id
)
select said.*, to_jsonb(task) as task, exists (select from queued) as is_new,
       array(select id from bound order by id) as attachment_ids
from said, task;

-- name: list_messages
-- Ascending; the page that ends before a place. $1 session, $2 and $3 the place or null, $4 how many
select * from (
    select m.*, coalesce((
               select jsonb_agg(jsonb_build_object('id', f.id, 'filename', f.filename,
                   'content_type', f.content_type, 'size_bytes', f.size_bytes) order by f.id)
               from attachment f where f.chat_message_id = m.id), '[]') as attachments
    from chat_message m
    where m.chat_session_id = $1
      and ($2::timestamptz is null or (m.created_at, m.id) < ($2::timestamptz, $3::uuid))
    order by m.created_at desc, m.id desc
    limit $4
) page
order by created_at, id;

-- name: pending_task
select id as task_id, status, created_at from agent_task_queue
where chat_session_id = $1 and status in
    ('queued', 'dispatched', 'waiting_local_directory', 'running')
order by created_at desc limit 1;

-- name: pending_tasks
-- $1 workspace, $2 whose sessions
select t.id as task_id, t.status, t.chat_session_id
from agent_task_queue t join chat_session c on c.id = t.chat_session_id
where c.workspace_id = $1 and c.creator_id = $2 and t.status in
    ('queued', 'dispatched', 'waiting_local_directory', 'running')
order by t.created_at;

-- name: take_back
-- A task answers its messages itself after all, instead of its new attempt; what was said after it
-- had been handed out falls to a task of its own. $1 task, $2 the new attempts
with task as (
    select * from agent_task_queue where id = $1
), said as (
    select m.id, m.created_at > t.dispatched_at as later
    from chat_message m, task t
    where m.task_id = any($2::uuid[]) and m.role = 'user'
), queued as (
    insert into agent_task_queue (workspace_id, agent_id, runtime_id, chat_session_id, priority,
                                  initiator_type, initiator_id)
    select t.workspace_id, t.agent_id, a.runtime_id, t.chat_session_id, t.priority,
           t.initiator_type, t.initiator_id
    from task t join agent a on a.id = t.agent_id
    where exists (select from said where later)
    returning *
), moved as (
    update chat_message m set task_id = case when s.later then (select id from queued) else $1 end
    from said s where m.id = s.id
)
select * from queued;

-- name: settle
-- What follows for chat tasks that have ended. $1 an array of {task_id, session_id, how (completed,
-- failed, cancelled, retried), text, reason, resume (whether the session can be resumed),
-- retry_id}. A cancelled task that has said nothing takes its messages back.
with ended as (
    select x.*, t.runtime_id, t.session_id as agent_session, t.work_dir,
           greatest(0, (extract(epoch from t.completed_at - t.created_at) * 1000)::bigint) as took,
           not exists (select from task_message m where m.task_id = x.task_id) as silent
    from jsonb_to_recordset($1::jsonb) as x (task_id uuid, session_id uuid, how text, text text,
                                             reason text, resume boolean, retry_id uuid)
    join agent_task_queue t on t.id = x.task_id
), moved as (
    -- the new attempt answers what the failed one was to answer
    update chat_message m set task_id = e.retry_id
    from ended e where m.task_id = e.task_id and m.role = 'user' and e.how = 'retried'
), released as (
    update attachment f set chat_message_id = null
    from ended e, chat_message m
    where m.task_id = e.task_id and m.role = 'user' and f.chat_message_id = m.id
      and e.how = 'cancelled' and e.silent
    returning f.id
), withdrawn as (
    delete from chat_message m using ended e
    where m.task_id = e.task_id and m.role = 'user' and e.how = 'cancelled' and e.silent
    returning m.*
), answered as (
    insert into chat_message (chat_session_id, role, content, task_id, failure_reason, elapsed_ms)
    select e.session_id, 'assistant',
           case when e.how = 'cancelled' then 'Stopped.' else e.text end, e.task_id,
           case when e.how = 'failed' then e.reason end, e.took
    from ended e
    where (e.how = 'completed' and e.text <> '') or e.how = 'failed'
       or (e.how = 'cancelled' and not e.silent)
    returning *
), pointed as (
    update chat_session c set
        session_id = case when e.resume then coalesce(nullif(e.agent_session, ''), c.session_id)
                          -- the run has spoilt the session it went on with
                          when coalesce(e.agent_session, '') in ('', c.session_id) then null
                          else c.session_id end,
        runtime_id = case when e.resume and e.agent_session <> '' then e.runtime_id
                          else c.runtime_id end,
        work_dir = coalesce(nullif(e.work_dir, ''), c.work_dir),
        unread_since = case when e.how in ('completed', 'failed')
            then coalesce(c.unread_since, now()) else c.unread_since end,
        updated_at = now()
    from ended e where c.id = e.session_id
    returning c.id, c.creator_id, c.workspace_id
)
select e.task_id, e.session_id, e.how, e.took, p.creator_id, p.workspace_id,
       (select to_jsonb(a) from answered a where a.task_id = e.task_id) as answer,
       (select jsonb_agg(to_jsonb(w) order by w.created_at, w.id) from withdrawn w
        where w.task_id = e.task_id) as withdrawn,
       array(select id from released) as released
from ended e left join pointed p on p.id = e.session_id;
