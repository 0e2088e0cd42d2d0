-- Autopilots: work that starts by itself (spec 02 §1.7, §3.9, §3.10).

-- name: list_autopilots
-- Newest first, with what lists show beside. $1 workspace, $2 status, $3 one of them, $4 who looks:
-- lists leave out what they may not see, of one of them `open` says it
select p.*, w.whose, w.open,
       coalesce((select jsonb_agg(distinct t.kind) from autopilot_trigger t
                 where t.autopilot_id = p.id), '[]') as trigger_kinds,
       (select min(t.next_run_at) from autopilot_trigger t
        where t.autopilot_id = p.id and t.enabled and p.status = 'active') as next_run_at,
       (select r.status from autopilot_run r where r.autopilot_id = p.id
        order by r.triggered_at desc limit 1) as last_run_status,
       coalesce((select jsonb_agg(jsonb_build_object('user_type', s.user_type,
                     'user_id', s.user_id, 'created_at',
                     to_char(s.created_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'))
                     order by s.created_at, s.user_id)
                 from autopilot_subscriber s where s.autopilot_id = p.id), '[]') as subscribers
from autopilot p
cross join lateral (
    select x.whose,
           not (x.whose ->> 'private')::boolean or x.whose -> 'people' ? $4::text
           or x.whose -> 'agents' ? $4::text
           or coalesce((select may_use_agent(a.id, a.visibility, a.owner_id, a.workspace_id,
                                             $4::uuid)
                        from agent a where a.id = (x.whose ->> 'agent')::uuid), true) as open
    from (select autopilot_whose(p.workspace_id, p.assignee_type, p.assignee_id,
                                 p.created_by_type, p.created_by_id) as whose) x
) w
where p.workspace_id = $1 and ($2::text is null or p.status = $2)
  and ($3::uuid is null or p.id = $3) and ($3::uuid is not null or w.open)
order by p.created_at desc, p.id
limit 1000;

-- name: lock_autopilot
select p.*, autopilot_whose(p.workspace_id, p.assignee_type, p.assignee_id, p.created_by_type,
                       p.created_by_id) as whose
from autopilot p where p.workspace_id = $1 and p.id = $2 for no key update;

-- name: assignee
-- Who would do the work, and why not. $1 workspace, $2 type, $3 id, $4 the member who made the
-- autopilot or null
select a.id as agent_id, a.name, a.runtime_id, s.id as squad_id,
       a.archived_at is not null as archived,
       s.archived_at is not null as squad_archived, r.status = 'online' as online,
       may_use_agent(a.id, a.visibility, a.owner_id, a.workspace_id, $4::uuid) as open
from (select 1) one
left join squad s on $2::text = 'squad' and s.id = $3::uuid and s.workspace_id = $1
join agent a on a.workspace_id = $1
    and a.id = case when $2::text = 'squad' then s.leader_id else $3::uuid end
join agent_runtime r on r.id = a.runtime_id;

-- name: create_autopilot
with made as (
    insert into autopilot (workspace_id, title, description, assignee_type, assignee_id,
        execution_mode, issue_title_template, project_id, created_by_type, created_by_id)
    values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
    returning id
), listening as (
    insert into autopilot_subscriber (autopilot_id, user_id)
    select made.id, x.id from made, unnest($11::uuid[]) as x (id)
)
select id from made;

-- name: update_autopilot
-- $2 is an object of new values, null clears; absent keys stay. $3 subscribers, or null
with dropped as (
    delete from autopilot_subscriber
    where autopilot_id = $1 and $3::uuid[] is not null and user_id <> all($3::uuid[])
), listening as (
    insert into autopilot_subscriber (autopilot_id, user_id)
    select $1, x.id from unnest(coalesce($3::uuid[], '{}')) as x (id)
    on conflict do nothing
)
update autopilot set
    title = coalesce($2::jsonb ->> 'title', title),
    description = case when $2::jsonb ? 'description' then $2 ->> 'description'
                       else description end,
    issue_title_template = case when $2::jsonb ? 'issue_title_template'
        then $2 ->> 'issue_title_template' else issue_title_template end,
    project_id = case when $2::jsonb ? 'project_id' then ($2 ->> 'project_id')::uuid
                      else project_id end,
    assignee_type = coalesce($2::jsonb ->> 'assignee_type', assignee_type),
    assignee_id = coalesce(($2::jsonb ->> 'assignee_id')::uuid, assignee_id),
    status = coalesce($2::jsonb ->> 'status', status),
    execution_mode = coalesce($2::jsonb ->> 'execution_mode', execution_mode),
    updated_at = now()
where id = $1;

-- name: delete_autopilot
delete from autopilot where id = $1;

-- name: members_among
-- How many of these users are members. $1 workspace, $2 users
select count(*) from member where workspace_id = $1 and user_id = any($2::uuid[]);

-- name: list_triggers
select * from autopilot_trigger where autopilot_id = $1 order by created_at, id;

-- name: lock_trigger
select * from autopilot_trigger where autopilot_id = $1 and id = $2 for no key update;

-- name: create_trigger
insert into autopilot_trigger (autopilot_id, kind, cron_expression, timezone, label, provider,
                               event_filters, next_run_at, webhook_token)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9)
returning *;

-- name: update_trigger
-- $2 is an object of new values; absent keys stay.
update autopilot_trigger set
    enabled = coalesce(($2::jsonb ->> 'enabled')::boolean, enabled),
    cron_expression = coalesce($2::jsonb ->> 'cron_expression', cron_expression),
    timezone = coalesce($2::jsonb ->> 'timezone', timezone),
    label = case when $2::jsonb ? 'label' then nullif($2 ->> 'label', '') else label end,
    event_filters = case when $2::jsonb ? 'event_filters'
        then nullif($2 -> 'event_filters', '[]') else event_filters end,
    webhook_token = coalesce($2::jsonb ->> 'webhook_token', webhook_token),
    signing_secret = case when $2::jsonb ? 'signing_secret'
        then nullif($2 ->> 'signing_secret', '') else signing_secret end,
    next_run_at = $3,
    updated_at = now()
where id = $1
returning *;

-- name: delete_trigger
delete from autopilot_trigger where autopilot_id = $1 and id = $2 returning id;

-- name: list_runs
select r.* from autopilot_run r
where r.autopilot_id = $1
order by r.triggered_at desc, r.id
limit $2::bigint offset $3::bigint;

-- name: get_run
select * from autopilot_run where autopilot_id = $1 and id = $2;

-- name: add_run
-- No row when this plan of the trigger has its run already.
with added as (
    insert into autopilot_run (autopilot_id, trigger_id, source, status, squad_id, planned_at,
                               failure_reason, trigger_payload, completed_at)
    values ($1, $2, $3, $4, $5, $6, $7, $8,
            case when $4::text in ('skipped', 'failed') then now() end)
    on conflict (trigger_id, planned_at) where planned_at is not null do nothing
    returning *
), noted as (
    update autopilot p set last_run_at = now() from added where p.id = added.autopilot_id
), fired as (
    update autopilot_trigger t set last_fired_at = now() from added where t.id = added.trigger_id
)
select * from added;

-- name: link_run
update autopilot_run set issue_id = $2, task_id = $3 where id = $1 returning *;

-- name: queue_run
-- The bare task of a run. $1 workspace, $2 agent, $3 run, $4 summary, $5 whether it leads a squad
insert into agent_task_queue (workspace_id, agent_id, runtime_id, autopilot_run_id,
                              trigger_summary, is_leader_task)
select $1, a.id, a.runtime_id, $3, $4, $5 from agent a where a.id = $2
returning *;

-- name: subscribe_issue
-- The template's subscribers follow the issue and are told of it. $1 issue, $2 autopilot,
-- $3 the agent that made it
with listening as (
    insert into issue_subscriber (issue_id, user_type, user_id, reason)
    select $1, 'member', s.user_id, 'autopilot'
    from autopilot_subscriber s where s.autopilot_id = $2
    on conflict do nothing
    returning user_id
)
insert into inbox_item (workspace_id, recipient_type, recipient_id, type, severity, issue_id,
                        title, actor_type, actor_id)
select i.workspace_id, 'member', l.user_id, 'issue_subscribed', 'info', i.id, i.title, 'agent', $3
from listening l, issue i where i.id = $1
returning to_jsonb(inbox_item) as item;

-- name: finish_task_runs
-- Runs whose bare task has ended. $1 an array of {task_id, run_id, status, reason, result}
with ended as (
    select * from jsonb_to_recordset($1::jsonb)
        as x (run_id uuid, status text, reason text, result jsonb)
)
update autopilot_run r
set status = e.status, completed_at = now(), failure_reason = nullif(e.reason, ''),
    result = e.result
from ended e, autopilot p
where r.id = e.run_id and p.id = r.autopilot_id
  and (r.status = 'running' or (r.status = 'failed' and e.status = 'completed'))
returning r.id, r.autopilot_id, r.status, p.workspace_id,
    autopilot_whose(p.workspace_id, p.assignee_type, p.assignee_id, p.created_by_type,
                       p.created_by_id) as whose;

-- name: finish_issue_runs
-- Runs whose issue says how they went: by its status, or because nobody works on it any more after
-- a failure ($2). $1 issues
update autopilot_run r
set status = case when i.status in ('done', 'in_review') then 'completed' else 'failed' end,
    completed_at = now(),
    failure_reason = case when i.status in ('cancelled', 'blocked') then 'issue ' || i.status
                          when i.status not in ('done', 'in_review') then nullif($2, '') end
from issue i, autopilot p
where r.issue_id = i.id and i.id = any($1::uuid[]) and p.id = r.autopilot_id
  and r.status = 'issue_created'
  and (i.status in ('done', 'in_review', 'cancelled', 'blocked')
       or ($2::text is not null and not exists (
           select from agent_task_queue q where q.issue_id = i.id and q.status in
               ('queued', 'dispatched', 'waiting_local_directory', 'running'))))
returning r.id, r.autopilot_id, r.status, p.workspace_id,
    autopilot_whose(p.workspace_id, p.assignee_type, p.assignee_id, p.created_by_type,
                       p.created_by_id) as whose;

-- name: reopen_runs
-- Runs that had failed with a task that was given up: it goes on, or has done its work. $1 its run,
-- $2 its issue
update autopilot_run r
set status = case when r.id = $1 then 'running' else 'issue_created' end,
    completed_at = null, failure_reason = null, result = null
where r.status = 'failed'
  and (r.id = $1 or (r.issue_id = $2 and r.failure_reason = 'task failed'));

-- name: fail_deleted
-- Runs whose issues are about to be deleted. $1 issues
update autopilot_run r set status = 'failed', completed_at = now(),
    failure_reason = 'issue deleted'
from autopilot p
where r.issue_id = any($1::uuid[]) and r.status = 'issue_created' and p.id = r.autopilot_id
returning r.id, r.autopilot_id, r.status, p.workspace_id,
    autopilot_whose(p.workspace_id, p.assignee_type, p.assignee_id, p.created_by_type,
                       p.created_by_id) as whose;

-- name: due_triggers
-- Schedules whose time has come, each for one server at a time. $1 how many
select t.*, p.workspace_id
from autopilot_trigger t join autopilot p on p.id = t.autopilot_id
where t.kind = 'schedule' and t.enabled and p.status = 'active' and t.next_run_at <= now()
order by t.next_run_at
limit $1
for no key update of t skip locked;

-- name: set_next
update autopilot_trigger set next_run_at = $2 where id = $1;

-- name: fail_often
-- Autopilots that fail nearly always are paused. $1 how far back, $2 how many runs, $3 which share
with counted as (
    select r.autopilot_id, count(*) as n, count(*) filter (where r.status = 'failed') as failed
    from autopilot_run r
    where r.status in ('completed', 'failed') and r.completed_at > now() - $1::interval
    group by r.autopilot_id
)
update autopilot p set status = 'paused', updated_at = now()
from counted c
where p.id = c.autopilot_id and p.status = 'active' and c.n >= $2 and c.failed >= $3 * c.n
returning p.*, c.n, c.failed,
    autopilot_whose(p.workspace_id, p.assignee_type, p.assignee_id, p.created_by_type,
                       p.created_by_id) as whose;

-- name: tell_paused
-- $1 an array of {id, body}
insert into inbox_item (workspace_id, recipient_type, recipient_id, type, severity, title, body,
                        actor_type, details)
select p.workspace_id, 'member', m.user_id, 'autopilot_paused', 'attention', p.title, x.body,
       'system', jsonb_build_object('autopilot_id', p.id)
from jsonb_to_recordset($1::jsonb) as x (id uuid, body text)
join autopilot p on p.id = x.id
join member m on m.workspace_id = p.workspace_id and m.user_id = case p.created_by_type
    when 'member' then p.created_by_id
    else (select a.owner_id from agent a where a.id = p.created_by_id) end
returning to_jsonb(inbox_item) as item;
