-- A task's life. Every transition is one conditional update; no row means that the race was lost.
-- Who calls is checked where the row is read (`{own r}`, see queries.py): a task answers to who owns
-- the machine it is on. $user and $bound (a machine token's workspace and daemon) are both null for
-- callers that were checked before.

-- name: lock_claimable
-- What a claim decides on, locked: the runtimes with the caller's right to them, and their agents
-- that have something queued. The claim itself must be a second statement: only a new snapshot sees
-- what the previous holder of an agent's lock has committed. $1 runtimes, $2 user, $3 bound
with runtime as (
    select r.id, r.workspace_id, r.owner_id, r.visibility,
           {own r} as allowed,
           exists (select from agent_task_queue t
                   where t.runtime_id = r.id and t.status = 'dispatched' and t.started_at is null
                     and t.dispatched_at < now() - $4::interval
                     and coalesce(t.prepare_lease_expires_at, '-infinity') < now()
                     and t.deliveries < 5) as lost
    from agent_runtime r
    where r.id = any($1::uuid[])
), misplaced as materialized (
    -- of another workspace than the machine: never handed out, and then nothing is locked here
    select t.id
    from runtime r
    join agent a on a.runtime_id = r.id
    join agent_task_queue t on t.agent_id = a.id and t.status = 'queued'
    where r.allowed and t.workspace_id <> r.workspace_id
), locked as (
    select a.id, a.runtime_id
    from agent a join runtime r on r.id = a.runtime_id
    where r.allowed and a.archived_at is null and not exists (select from misplaced)
      -- a machine that changed hands works for agents put there before only if it is open to all
      and (a.placed_under is null or a.placed_under = r.owner_id or a.owner_id = r.owner_id
           or r.visibility = 'public')
      and exists (select from agent_task_queue t where t.agent_id = a.id and t.status = 'queued')
    order by a.id
    for no key update of a
)
select r.id, r.owner_id, r.allowed, r.lost,
       array(select l.id from locked l where l.runtime_id = r.id) as agents,
       array(select m.id from misplaced m) as misplaced
from runtime r;

-- name: claim
-- Hand at most one task to each of the runtimes: first a claim whose answer was lost, else the first
-- queued task of an agent with capacity and without a run in the same place. A task follows its
-- agent to the runtime it is on now. The token is stored with the claim, so that neither exists
-- alone; it stands for the agent's owner, not for whose machine the agent may use. $1 runtimes, $2 a token hash for each, $3 the agents locked, $4 after how long a claim is
-- delivered again, $5 lease, $6 life of the token, $7 the failure reasons that
-- spoil a session, $8 whether the daemon wants to know only which skills there are
with wanted as (
    select r.id as runtime_id, r.workspace_id, r.owner_id, w.token_hash
    from unnest($1::uuid[], $2::text[]) as w (runtime_id, token_hash)
    join agent_runtime r on r.id = w.runtime_id
    where r.owner_id is not null
), lost as (
    select w.*, t.id
    from wanted w
    cross join lateral (
        select t.id
        from agent_task_queue t
        where t.runtime_id = w.runtime_id and t.workspace_id = w.workspace_id
          and t.status = 'dispatched' and t.started_at is null
          and t.dispatched_at < statement_timestamp() - $4::interval
          and coalesce(t.prepare_lease_expires_at, '-infinity') < statement_timestamp()
          -- a claim whose answer never arrives is given up after a few times
          and t.deliveries < 5
        order by t.priority desc, t.dispatched_at
        limit 1
        for no key update skip locked
    ) t
), first as (
    select w.*, t.id
    from wanted w
    cross join lateral (
        select t.id
        from (
            select a.id
            from agent a
            where a.id = any($3::uuid[]) and a.runtime_id = w.runtime_id and a.archived_at is null
              and (select count(*) from agent_task_queue f
                   where f.agent_id = a.id
                     and f.status in ('dispatched', 'waiting_local_directory', 'running'))
                  < a.max_concurrent_tasks
        ) a
        cross join lateral (
            select t.id, t.priority, t.created_at
            from agent_task_queue t
            where t.agent_id = a.id and t.status = 'queued' and t.workspace_id = w.workspace_id
              and (t.not_before is null or t.not_before <= statement_timestamp())
              and not exists (
                  select from agent_task_queue f
                  where f.agent_id = a.id
                    and f.status in ('dispatched', 'waiting_local_directory', 'running')
                    and (f.issue_id = t.issue_id or f.chat_session_id = t.chat_session_id
                         or (num_nonnulls(t.issue_id, t.chat_session_id, t.autopilot_run_id) = 0
                             and num_nonnulls(f.issue_id, f.chat_session_id,
                                              f.autopilot_run_id) = 0)))
            order by t.priority desc, t.created_at
            limit 1
            for no key update skip locked
        ) t
        order by t.priority desc, t.created_at
        limit 1
    ) t
    where not exists (select from lost l where l.runtime_id = w.runtime_id)
), taken as (
    update agent_task_queue t
    set status = 'dispatched', dispatched_at = statement_timestamp(), runtime_id = c.runtime_id,
        deliveries = t.deliveries + 1,
        prepare_lease_expires_at = statement_timestamp() + $5::interval
    from (select l.*, true as again from lost l union all select f.*, false from first f) c
    where t.id = c.id
    returning t.*, c.again, c.token_hash, c.owner_id
), minted as (
    insert into task_token (token_hash, task_id, agent_id, workspace_id, user_id, expires_at)
    select t.token_hash, t.id, t.agent_id, t.workspace_id, coalesce(m.user_id, t.owner_id),
           statement_timestamp() + $6::interval
    from taken t
    join agent a on a.id = t.agent_id
    left join member m on m.workspace_id = t.workspace_id and m.user_id = a.owner_id
), busy as (
    update agent a set status = 'working', updated_at = statement_timestamp()
    from taken t
    where a.id = t.agent_id and a.status <> 'working' and not t.again
    returning a.id, a.updated_at
)
select t.*, to_jsonb(a) || jsonb_build_object('status', 'working') as agent,
       busy.id is not null as became_busy,
       w.context as workspace_context, w.repos as workspace_repos,
       (select jsonb_object_agg(rc.url, rc.userinfo) from repository_credential rc
        where rc.workspace_id = t.workspace_id) as credentials,
       i.title as issue_title,
       owner.name as owner_name, owner.profile_description as owner_profile,
       c.content as trigger_content, c.parent_id as trigger_parent_id,
       c.author_type as trigger_author_type,
       coalesce(author.name, author_agent.name) as trigger_author_name,
       coalesce(t.initiator_type, c.author_type) as started_by_type,
       coalesce(t.initiator_id, c.author_id) as started_by_id,
       coalesce(starter.name, starter_agent.name) as started_by_name,
       starter.email as started_by_email,
       prior.session_id as prior_session_id, prior.work_dir as prior_work_dir,
       prior.runtime_id as prior_runtime_id,
       last_run.started_at as last_run_at, skills.listed as skills, to_jsonb(p) as project,
       resources.listed as resources, to_jsonb(squad) as squad, roster.listed as roster,
       chat.title as chat_title, chat.session_id as chat_session, chat.work_dir as chat_work_dir,
       chat.runtime_id as chat_runtime_id, said.texts as chat_texts, said.files as chat_files,
       run.source as run_source, run.trigger_payload as run_payload, to_jsonb(pilot) as autopilot,
       w.issue_prefix || '-' || parent.number as parent_identifier,
       (select count(*) from comment n
        where n.issue_id = t.issue_id and n.created_at > last_run.started_at
          and n.id is distinct from t.trigger_comment_id
          and (n.author_type, n.author_id) is distinct from ('agent', t.agent_id)
       ) as new_comments
from taken t
join agent a on a.id = t.agent_id
left join busy on busy.id = a.id
join workspace w on w.id = t.workspace_id
join app_user owner on owner.id = t.owner_id
left join issue i on i.id = t.issue_id
left join comment c on c.id = t.trigger_comment_id
left join app_user author on c.author_type = 'member' and author.id = c.author_id
left join agent author_agent on c.author_type = 'agent' and author_agent.id = c.author_id
left join app_user starter on coalesce(t.initiator_type, c.author_type) = 'member'
    and starter.id = coalesce(t.initiator_id, c.author_id)
left join agent starter_agent on coalesce(t.initiator_type, c.author_type) = 'agent'
    and starter_agent.id = coalesce(t.initiator_id, c.author_id)
left join lateral (
    -- where the agent left off, on the issue or in the chat. A session that some run spoilt is not
    -- good again because an older run was, and a rerun leaves behind what was before it
    select p.session_id, p.work_dir, p.runtime_id
    from (
        select q.*, bool_or(q.status = 'failed' and (
                   coalesce(q.failure_reason, '') = any($7::text[])
                   or (coalesce(q.error, '') ilike '%invalid_request_error%'
                       and q.error like '%400%'))) over (partition by q.session_id) as spoilt,
               max(q.created_at) filter (where q.force_fresh_session and q.parent_task_id is null)
                   over () as rerun_at
        from agent_task_queue q
        where (q.issue_id = t.issue_id or q.chat_session_id = t.chat_session_id)
          and q.agent_id = t.agent_id and q.status in ('completed', 'failed', 'cancelled')
    ) p
    where p.session_id is not null and not p.spoilt and not t.force_fresh_session
      and p.created_at >= coalesce(p.rerun_at, '-infinity')
    order by coalesce(p.completed_at, p.started_at, p.dispatched_at, p.created_at) desc
    limit 1
) prior on true
left join lateral (
    select max(p.started_at) as started_at
    from agent_task_queue p
    where p.issue_id = t.issue_id and p.agent_id = t.agent_id and p.id <> t.id
) last_run on true
left join lateral (
    select jsonb_agg(jsonb_build_object('id', s.id, 'name', s.name, 'description', s.description,
               'hash', s.hash, 'size_bytes', s.size_bytes,
               'content', case when not $8::boolean then s.content end, 'files', coalesce(
                   (select jsonb_agg(jsonb_build_object('path', f.path, 'sha256', f.sha256,
                        'size_bytes', f.size_bytes,
                        'content', case when not $8::boolean then f.content end)
                        order by f.path collate "C")
                    from skill_file f where f.skill_id = s.id), '[]')) order by s.name, s.id)
               as listed
    from agent_skill k join skill s on s.id = k.skill_id
    where k.agent_id = t.agent_id
) skills on true
left join project p on p.id = coalesce(i.project_id, (t.context ->> 'project_id')::uuid)
left join lateral (
    select jsonb_agg(jsonb_build_object('id', x.id, 'resource_type', x.resource_type,
               'resource_ref', x.resource_ref, 'label', coalesce(x.label, ''))
               order by x.position, x.created_at, x.id) as listed
    from project_resource x where x.project_id = p.id
) resources on true
-- the squad the agent leads here, and who is in it
left join squad on squad.leader_id = t.agent_id and squad.archived_at is null and squad.id = case
    when i.id is null then (t.context ->> 'squad_id')::uuid
    when i.assignee_type = 'squad' then i.assignee_id end
left join lateral (
    select jsonb_agg(jsonb_build_object('type', m.member_type, 'id', m.member_id, 'role', m.role,
               'name', coalesce(ma.name, mu.name),
               'skills', (select jsonb_agg(s.name order by s.name)
                          from agent_skill k join skill s on s.id = k.skill_id
                          where k.agent_id = ma.id)) order by m.created_at, m.id) as listed
    from squad_member m
    left join agent ma on m.member_type = 'agent' and ma.id = m.member_id
        and ma.archived_at is null
    left join app_user mu on m.member_type = 'member' and mu.id = m.member_id
    where m.squad_id = squad.id and coalesce(ma.id, mu.id) is not null
) roster on true
left join chat_session chat on chat.id = t.chat_session_id
left join lateral (
    select array_agg(m.content order by m.created_at, m.id) as texts,
           jsonb_agg(files.listed) filter (where files.listed is not null) as files
    from chat_message m
    left join lateral (
        select jsonb_agg(jsonb_build_object('id', f.id, 'filename', f.filename,
                   'content_type', f.content_type) order by f.created_at, f.id) as listed
        from attachment f where f.chat_message_id = m.id
    ) files on true
    where m.task_id = t.id and m.role = 'user'
) said on t.chat_session_id is not null
left join autopilot_run run on run.id = t.autopilot_run_id
left join autopilot pilot on pilot.id = run.autopilot_id
left join issue parent on parent.id = (t.context ->> 'parent_issue_id')::uuid;

-- name: get_task
select * from agent_task_queue where id = $1;

-- name: see_task
-- A task and the caller's right to it. $1 task, $2 user, $3 bound
select t.*,
       {own r} as allowed
from agent_task_queue t join agent_runtime r on r.id = t.runtime_id
where t.id = $1;

-- name: start
-- The agent is about to run. $4 the statuses this is possible from
with task as (
    select t.id, {own r} as allowed
    from agent_task_queue t
    join agent_runtime r on r.id = t.runtime_id
    where t.id = $1
), changed as (
    update agent_task_queue t
    set status = 'running', started_at = statement_timestamp(), wait_reason = null,
        prepare_lease_expires_at = null
    from task
    where t.id = task.id and task.allowed and t.status = any($4::text[])
    returning t.*
)
select c.*, true as allowed, true as changed from changed c
union all
select t.*, task.allowed, false from task join agent_task_queue t using (id)
where not exists (select from changed);

-- name: wait_local_directory
-- Another task holds the directory. $4 the statuses this is possible from, $5 reason, $6 lease
with task as (
    select t.id, {own r} as allowed
    from agent_task_queue t
    join agent_runtime r on r.id = t.runtime_id
    where t.id = $1
), changed as (
    update agent_task_queue t
    set status = 'waiting_local_directory', wait_reason = nullif($5::text, ''),
        prepare_lease_expires_at = statement_timestamp() + $6::interval
    from task
    where t.id = task.id and task.allowed and t.status = any($4::text[])
    returning t.*
)
select c.*, true as allowed, true as changed from changed c
union all
select t.*, task.allowed, false from task join agent_task_queue t using (id)
where not exists (select from changed);

-- name: extend_lease
-- The daemon is still preparing. $4 the statuses this is possible from, $5 runtime, $6 lease
with task as (
    select t.id, {own r} as allowed
    from agent_task_queue t
    join agent_runtime r on r.id = t.runtime_id
    where t.id = $1 and t.runtime_id = $5::uuid
), changed as (
    update agent_task_queue t
    set prepare_lease_expires_at = statement_timestamp() + $6::interval
    from task
    where t.id = task.id and task.allowed and t.status = any($4::text[]) and t.started_at is null
    returning t.*
)
select c.*, true as allowed, true as changed from changed c
union all
select t.*, task.allowed, false from task join agent_task_queue t using (id)
where not exists (select from changed);

-- name: set_progress
-- Remember the last progress for readers who come later. $4 the progress
with task as (
    select t.id, t.workspace_id, t.status, t.chat_session_id, t.initiator_id, t.agent_private,
           t.agent_owner_id, {own r} as allowed
    from agent_task_queue t
    join agent_runtime r on r.id = t.runtime_id
    where t.id = $1
), changed as (
    update agent_task_queue t set progress = $4::jsonb
    from task
    where t.id = task.id and task.allowed
      and t.status in ('dispatched', 'waiting_local_directory', 'running')
)
select * from task;

-- name: pin_session
-- Remember the agent's session as soon as it is known. $4 session, $5 directory
with task as (
    select t.id, {own r} as allowed
    from agent_task_queue t
    join agent_runtime r on r.id = t.runtime_id
    where t.id = $1
), changed as (
    update agent_task_queue t
    set session_id = coalesce(nullif($4::text, ''), t.session_id),
        work_dir = coalesce(nullif($5::text, ''), t.work_dir)
    from task
    where t.id = task.id and task.allowed
      and (t.status in ('dispatched', 'waiting_local_directory', 'running')
           or (t.status = 'failed' and t.presumed))
)
select * from task;

-- name: add_messages
-- Store a batch of the transcript. What is there already stays as it is and is not returned, so a
-- batch that is sent twice is shown once. But a daemon of the reference that starts its agent anew
-- within a task counts from 1 again: rows that are there with other contents are another run's, and
-- the batch goes behind all there is. No new row: one row without a seq. $4 the batch
with task as (
    select t.id, t.issue_id, t.workspace_id, t.chat_session_id, t.initiator_id, t.seq_base,
           t.agent_private, t.agent_owner_id, {own r} as allowed
    from agent_task_queue t
    join agent_runtime r on r.id = t.runtime_id
    where t.id = $1
), sent as materialized (
    select *
    from jsonb_to_recordset($4::jsonb)
        as m (seq int, type text, tool text, content text, input jsonb, output text)
), base as materialized (
    select case
        when exists (
            select from sent m
            join task_message old on old.task_id = task.id and old.seq = task.seq_base + m.seq
            where (old.type, old.tool, old.content, old.input, old.output)
                is distinct from (m.type, m.tool, m.content, m.input, m.output))
        then (select max(seq) from task_message where task_id = task.id)
             - (select min(seq) from sent) + 1
        else task.seq_base end as seq
    from task
), moved as (
    update agent_task_queue t set seq_base = base.seq
    from task, base
    where t.id = task.id and task.allowed and base.seq <> task.seq_base
), added as (
    insert into task_message (task_id, seq, type, tool, content, input, output)
    select task.id, base.seq + m.seq, m.type, m.tool, m.content, m.input, m.output
    from task, base, sent m
    where task.allowed and base.seq::bigint + m.seq < 2147483648
    on conflict (task_id, seq) do nothing
    returning *
)
select task.allowed, task.workspace_id, task.issue_id, task.chat_session_id, task.initiator_id,
       task.agent_private, task.agent_owner_id, added.*
from task left join added on true
order by added.seq;

-- name: list_messages
-- The transcript after $4, for a daemon. No row beyond it: one row without a seq.
select {own r} as allowed,
       t.workspace_id, t.issue_id, m.*
from agent_task_queue t
join agent_runtime r on r.id = t.runtime_id
left join task_message m on m.task_id = t.id and m.seq > $4::bigint
where t.id = $1
order by m.seq;

-- name: add_usage
-- Totals so far, by provider and model; they replace what was reported before. $4 the entries
with task as (
    select t.id, coalesce(r.provider, '') as provider,
           {own r} as allowed
    from agent_task_queue t
    left join agent_runtime r on r.id = t.runtime_id
    where t.id = $1
), stored as (
    insert into task_usage (task_id, provider, model, input_tokens, output_tokens,
                            cache_read_tokens, cache_write_tokens)
    select distinct on (2, 3) task.id,
           coalesce(nullif(lower(trim(u.provider)), ''), task.provider), u.model,
           u.input_tokens, u.output_tokens, u.cache_read_tokens, u.cache_write_tokens
    from task, rows from (jsonb_to_recordset($4::jsonb)
        as (provider text, model text, input_tokens bigint, output_tokens bigint,
            cache_read_tokens bigint, cache_write_tokens bigint)) with ordinality
        as u (provider, model, input_tokens, output_tokens, cache_read_tokens,
              cache_write_tokens, place)
    where task.allowed
    order by 2, 3, u.place desc
    on conflict (task_id, provider, model) do update
    set input_tokens = excluded.input_tokens, output_tokens = excluded.output_tokens,
        cache_read_tokens = excluded.cache_read_tokens,
        cache_write_tokens = excluded.cache_write_tokens, updated_at = now()
    returning *
)
select task.*, array(
    -- what was there before this statement, which is what a statement sees
    select jsonb_build_object('provider', n.provider, 'model', n.model,
        'input', n.input_tokens - coalesce(o.input_tokens, 0),
        'output', n.output_tokens - coalesce(o.output_tokens, 0),
        'cache_read', n.cache_read_tokens - coalesce(o.cache_read_tokens, 0),
        'cache_write', n.cache_write_tokens - coalesce(o.cache_write_tokens, 0))
    from stored n
    left join task_usage o on o.task_id = n.task_id and o.provider = n.provider
        and o.model = n.model) as grown
from task;

-- name: pending_of_runtime
-- What a runtime has before it: queued for it, or claimed by it and not started. At most 1000.
select t.*
from agent_task_queue t
join agent a on a.id = t.agent_id
where (t.status = 'queued' and a.runtime_id = $1)
   or (t.status = 'dispatched' and t.runtime_id = $1)
order by t.priority desc, t.created_at
limit 1000;
