-- What a change leaves behind beside itself (spec 02 §11.3): who follows the issue now, what was
-- done to it, and who is told. One statement, however many followers.

-- name: derive
-- $1 workspace, $2 type and $3 id of who did it, $4 followers as {issue_id, user_type, user_id,
-- reason}, $5 activities as {issue_id, action, details}, $6 notes as {issue_id, type, severity, mute,
-- body, details, rank, user_id (null: everybody who follows), squad_id, everyone}. Nobody is told of
-- what they did themselves, twice of one thing, or of what they do not want to hear.
with followed as (
    insert into issue_subscriber (issue_id, user_type, user_id, reason)
    select x.issue_id, x.user_type, x.user_id, x.reason
    from jsonb_to_recordset($4::jsonb)
        as x (issue_id uuid, user_type text, user_id uuid, reason text)
    where case x.user_type
        when 'agent' then exists (select from agent a where a.workspace_id = $1
                                  and a.id = x.user_id)
        else exists (select from member m where m.workspace_id = $1
                     and m.user_id = x.user_id) end
    on conflict do nothing
    returning *
), logged as (
    insert into activity_log (workspace_id, issue_id, actor_type, actor_id, action, details)
    select $1, x.issue_id, $2, $3, x.action, coalesce(x.details, '{}')
    from jsonb_to_recordset($5::jsonb) as x (issue_id uuid, action text, details jsonb)
    returning *
), note as (
    select * from jsonb_to_recordset($6::jsonb) as x (issue_id uuid, type text, severity text,
        mute text, body text, details jsonb, rank int, user_id uuid, squad_id uuid,
        everyone boolean)
), audience as (
    select n.*, n.user_id as listener from note n where n.user_id is not null
    union all
    select n.*, s.member_id from note n
    join squad_member s on s.squad_id = n.squad_id and s.member_type = 'member'
    union all
    select n.*, m.user_id from note n join member m on m.workspace_id = $1 where n.everyone
    union all
    select n.*, s.user_id from note n
    join issue_subscriber s on s.issue_id = n.issue_id and s.user_type = 'member'
    where n.user_id is null and n.squad_id is null and not coalesce(n.everyone, false)
), told as (
    insert into inbox_item (workspace_id, recipient_type, recipient_id, type, severity, issue_id,
                            title, body, actor_type, actor_id, details)
    select distinct on (a.issue_id, a.listener, case when a.rank > 0 then 0 else a.rank end) $1,
           'member', a.listener, a.type, a.severity, a.issue_id, i.title, a.body, $2, $3,
           coalesce(a.details, '{}')
    from audience a
    join issue i on i.id = a.issue_id
    join member m on m.workspace_id = $1 and m.user_id = a.listener
    left join notification_preference p on p.workspace_id = $1 and p.user_id = a.listener
    where not ($2::text = 'member' and a.listener = $3::uuid)
      and coalesce(p.preferences ->> a.mute, 'all') <> 'muted'
    order by a.issue_id, a.listener, case when a.rank > 0 then 0 else a.rank end, a.rank
    returning *
)
select array(select to_jsonb(t) from told t) as items,
       array(select to_jsonb(l) from logged l) as activities,
       coalesce((select jsonb_agg(jsonb_build_object('issue_id', f.issue_id, 'user_type',
           f.user_type, 'user_id', f.user_id, 'reason', f.reason)) from followed f), '[]')
           as followers;

-- name: tell_failed
-- Runs that failed for good: a line in the timeline, a word to each follower who wants to hear.
-- $1 an array of {task_id, issue_id, agent_id, text}
with failed as (
    select x.*, i.workspace_id, i.title
    from jsonb_to_recordset($1::jsonb) as x (task_id uuid, issue_id uuid, agent_id uuid, text text)
    join issue i on i.id = x.issue_id
), logged as (
    insert into activity_log (workspace_id, issue_id, actor_type, actor_id, action, details)
    select f.workspace_id, f.issue_id, 'agent', f.agent_id, 'task_failed',
           jsonb_build_object('task_id', f.task_id)
    from failed f
    returning *
), told as (
    insert into inbox_item (workspace_id, recipient_type, recipient_id, type, severity, issue_id,
                            title, body, actor_type, actor_id, details)
    select f.workspace_id, 'member', s.user_id, 'task_failed', 'action_required', f.issue_id,
           f.title, f.text, 'agent', f.agent_id, jsonb_build_object('task_id', f.task_id)
    from failed f
    join issue_subscriber s on s.issue_id = f.issue_id and s.user_type = 'member'
    join member m on m.workspace_id = f.workspace_id and m.user_id = s.user_id
    left join notification_preference p
        on p.workspace_id = f.workspace_id and p.user_id = s.user_id
    where coalesce(p.preferences ->> 'agent_activity', 'all') <> 'muted'
    returning *
)
select array(select to_jsonb(t) from told t) as items,
       array(select to_jsonb(l) from logged l) as activities;
