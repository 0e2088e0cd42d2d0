-- Whether somebody other than who wrote it has changed an issue's description, or a comment. What acts
-- on a person's words (the demo agent's shell) asks for it: an author's name is no proof of the text.
alter table issue add column edited_by_others boolean not null default false;
alter table comment add column edited_by_others boolean not null default false;

update issue i set edited_by_others = true
where exists (select from activity_log a
              where a.issue_id = i.id and a.action = 'description_updated'
                and (a.actor_type, a.actor_id) is distinct from (i.creator_type, i.creator_id));

-- Of comments nobody wrote down who changed them.
update comment set edited_by_others = true where updated_at > created_at;
