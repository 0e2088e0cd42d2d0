-- What hangs on issues and comments: reactions and files (spec 06 §5, §7).

-- name: comment_reactions
-- $1 comments
select id, comment_id, actor_type, actor_id, emoji, created_at from comment_reaction
where comment_id = any($1::uuid[])
order by created_at, id;

-- name: comment_attachments
-- $1 comments
select * from attachment where comment_id = any($1::uuid[]) order by created_at, id;

-- name: issue_reactions
-- $1 issue
select id, issue_id, actor_type, actor_id, emoji, created_at from issue_reaction
where issue_id = $1
order by created_at, id;
