-- Who belongs to a workspace, and who was asked to (spec 06 §4, 02 §10.3).

-- name: lock_members
-- All of a workspace's members, locked: "the last owner" is a question about all of them.
select m.id, m.user_id, m.role from member m where m.workspace_id = $1 order by m.id for update;

-- name: get_member
select m.id, m.workspace_id, m.user_id, m.role, m.created_at, u.name, u.email, u.avatar_url
from member m join app_user u on u.id = m.user_id
where m.workspace_id = $1 and m.id = $2;

-- name: set_role
update member set role = $2 where id = $1;

-- name: active_of_member
-- Tasks that go with a person: on their machines, of the agents bound to those, and their chats and
-- quick-creates, which nobody else would read.
-- $1 workspace, $2 user
select t.id from agent_task_queue t
join agent_runtime r on r.id = t.runtime_id
join agent a on a.id = t.agent_id
join agent_runtime ar on ar.id = a.runtime_id
where t.workspace_id = $1 and t.status in
    ('queued', 'dispatched', 'waiting_local_directory', 'running')
  and (r.owner_id = $2 or ar.owner_id = $2
       or (t.issue_id is null and t.initiator_type = 'member' and t.initiator_id = $2))
order by t.id;

-- name: remove_member
-- A person leaves with their machines: these go offline, the agents on them are archived, the
-- machines' tokens are dead. $1 workspace, $2 user, $3 who did it
with machine as (
    update agent_runtime set status = 'offline', updated_at = now()
    where workspace_id = $1 and owner_id = $2
    returning id, daemon_id
), archived as (
    update agent a set archived_at = now(), archived_by = $3, updated_at = now()
    from machine m
    where a.runtime_id = m.id and a.archived_at is null
    returning a.id
), revoked as (
    delete from daemon_token t
    where t.workspace_id = $1 and (t.created_by = $2
        or t.daemon_id in (select daemon_id from machine))
    returning token_hash
), gone as (
    delete from member where workspace_id = $1 and user_id = $2 returning id
)
select (select id from gone) as member_id, array(select id from archived) as agents,
       array(select token_hash from revoked) as tokens;

-- name: invite
-- No row when they were asked already. $1 workspace, $2 inviter, $3 address, $4 role
insert into workspace_invitation (workspace_id, inviter_id, invitee_email, invitee_user_id, role)
values ($1, $2, $3, (select id from app_user where lower(email) = $3), $4)
on conflict (workspace_id, lower(invitee_email)) where status = 'pending' do nothing
returning id;

-- name: expire
-- Invitations nobody took in time are no longer in the way. $1 workspace
update workspace_invitation set status = 'expired', updated_at = now()
where workspace_id = $1 and status = 'pending' and expires_at < now();

-- name: is_member_by_email
select exists (select from member m join app_user u on u.id = m.user_id
               where m.workspace_id = $1 and lower(u.email) = $2);

-- name: list_invitations
-- Pending ones. $1 workspace or null, $2 user or null, $3 their address or null, $4 one or null
select i.*, inviter.name as inviter_name, inviter.email as inviter_email, w.name as workspace_name,
       w.slug as workspace_slug
from workspace_invitation i
join workspace w on w.id = i.workspace_id
left join app_user inviter on inviter.id = i.inviter_id
where ($1::uuid is null or i.workspace_id = $1)
  and ($2::uuid is null or i.invitee_user_id = $2 or lower(i.invitee_email) = lower($3))
  and ($4::uuid is null and i.status = 'pending' and i.expires_at > now() or i.id = $4)
order by i.created_at desc, i.id
limit 1000;

-- name: lock_invitation
select *, expires_at < now() as late from workspace_invitation where id = $1 for update;

-- name: answer_invitation
update workspace_invitation set status = $2, invitee_user_id = coalesce($3, invitee_user_id),
    updated_at = now()
where id = $1;

-- name: withdraw
delete from workspace_invitation
where workspace_id = $1 and id = $2 and status = 'pending'
returning invitee_email, invitee_user_id;

-- name: join
-- No row when they are a member already.
insert into member (workspace_id, user_id, role) values ($1, $2, $3)
on conflict (workspace_id, user_id) do nothing
returning id;

-- name: active_of_workspace
select id from agent_task_queue
where workspace_id = $1 and status in
    ('queued', 'dispatched', 'waiting_local_directory', 'running')
order by id;

-- name: drop_tasks
delete from agent_task_queue where workspace_id = $1;

-- name: drop_squads
delete from squad where workspace_id = $1;

-- name: drop_agents
delete from agent where workspace_id = $1;

-- name: drop_workspace
delete from workspace where id = $1;
