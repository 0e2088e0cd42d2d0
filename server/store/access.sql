-- name: personal_token
-- Whom a personal access token stands for; nothing when it is revoked or past its end.
select t.user_id, u.email, t.expires_at,
       t.last_used_at is null or t.last_used_at < now() - interval '5 minutes' as stale
  from personal_access_token t
  join app_user u on u.id = t.user_id
 where t.token_hash = $1
   and not t.revoked
   and (t.expires_at is null or t.expires_at > now());

-- name: personal_token_used
-- Note that a personal access token was used; coarse, so that it costs a write only now and then.
update personal_access_token
   set last_used_at = now()
 where token_hash = $1
   and (last_used_at is null or last_used_at < now() - interval '5 minutes');

-- name: task_token
-- Whom a task token stands for: the agent's owner (of an agent without one, its machine's), acting as
-- the agent of one task; and what the agent's work is: its issue and the parent of it, or its chat.
select t.user_id, u.email, t.agent_id, t.task_id, t.workspace_id, t.expires_at, a.owner_id,
       q.issue_id, i.parent_issue_id as parent_id, q.chat_session_id as chat_id
  from task_token t
  join app_user u on u.id = t.user_id
  join agent a on a.id = t.agent_id
  join agent_task_queue q on q.id = t.task_id
  left join issue i on i.id = q.issue_id
 where t.token_hash = $1
   and t.expires_at > now();

-- name: daemon_token
-- Which workspace and daemon a daemon token is bound to.
select workspace_id, daemon_id, expires_at, coalesce(created_by::text, '') as user_id
  from daemon_token
 where token_hash = $1
   and expires_at > now();

-- name: user_by_id
-- The user behind a session.
select id as user_id, email, name from app_user where id = $1;

-- name: membership_by_id
-- A user's role in a workspace named by id, and what its owner lets agents do besides.
select m.workspace_id, m.role, w.settings -> 'agents_may' as agents_may
  from member m
  join workspace w on w.id = m.workspace_id
 where m.user_id = $1 and m.workspace_id = $2;

-- name: membership_by_slug
-- The same in a workspace named by slug.
select m.workspace_id, m.role, w.settings -> 'agents_may' as agents_may
  from workspace w
  join member m on m.workspace_id = w.id
 where m.user_id = $1
   and w.slug = $2;

-- name: workspace_by_slug
-- Whether a workspace of that name exists.
select id from workspace where slug = $1;

-- name: runtimes_for_socket
-- The runtimes a daemon wants to hear of, with its right to them. $1 runtimes, $2 user, $3 bound
select r.id, r.workspace_id, {own r} as allowed from agent_runtime r where r.id = any($1::uuid[]);

-- name: task_workspace
-- Where a task belongs, and whether it is about an issue.
select workspace_id, issue_id from agent_task_queue where id = $1;

-- name: add_link
-- Keep a sign-in link until it is spent or over.
insert into sign_in_link (code_hash, user_id, expires_at) values ($1, $2, $3);

-- name: drop_old_links
-- Forget links nobody can use any more.
delete from sign_in_link where expires_at < now() - interval '1 day';

-- name: spend_link
-- Use a sign-in link; no row when it was used before, is over or never was.
update sign_in_link l
   set used_at = now()
  from app_user u
 where l.code_hash = $1
   and l.used_at is null
   and l.expires_at > now()
   and u.id = l.user_id
returning u.id as user_id, u.email, u.name;
