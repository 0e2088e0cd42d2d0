-- Files that people and agents attach (spec 06 §9).

-- name: add
-- $1 workspace, $2 issue, $3 comment, $4 chat, $5 type and $6 id of who, $7 name, $8 type, $9 data
with made as (
    insert into attachment (workspace_id, issue_id, comment_id, chat_session_id, uploader_type,
                            uploader_id, filename, url, content_type, size_bytes)
    values ($1, $2, $3, $4, $5, $6, $7, '', $8, length($9::bytea))
    returning *
), kept as (
    insert into attachment_content (attachment_id, data) select id, $9 from made
)
select * from made;

-- name: see
-- $1 attachment, $2 the user who asks
select f.* from attachment f
where f.id = $1
  and exists (select from member m where m.workspace_id = f.workspace_id and m.user_id = $2);

-- name: content
select data from attachment_content where attachment_id = $1;

-- name: of_issue
-- $1 issue
select f.* from attachment f
where f.issue_id = $1 or f.comment_id in (select id from comment where issue_id = $1)
order by f.created_at, f.id;

-- name: remove
delete from attachment where id = $1;

-- name: comment_of
-- The issue a comment is on. $1 workspace, $2 comment
select issue_id from comment where workspace_id = $1 and id = $2;

-- name: chat_of
-- Whose a chat is. $1 workspace, $2 session
select creator_id from chat_session where workspace_id = $1 and id = $2;

-- name: place_of_task
-- What a task is about. $1 workspace, $2 task
select issue_id, chat_session_id from agent_task_queue where workspace_id = $1 and id = $2;

-- name: bind_issue
-- Those that belong to nothing yet; others are left out. $1 workspace, $2 issue, $3 attachments
update attachment set issue_id = $2
where workspace_id = $1 and id = any($3::uuid[])
  and issue_id is null and comment_id is null and chat_session_id is null;

-- name: bind_comment
-- Those of the comment's issue that are not another comment's. $1 workspace, $2 issue, $3 comment,
-- $4 attachments
update attachment set comment_id = $3
where workspace_id = $1 and id = any($4::uuid[]) and comment_id is null
  and (issue_id = $2 or (issue_id is null and chat_session_id is null));

-- name: release_comment
-- Those a comment no longer carries stay with its issue. $1 issue, $2 comment, $3 those it keeps
update attachment set comment_id = null, issue_id = coalesce(issue_id, $1)
where comment_id = $2 and id <> all($3::uuid[]);
