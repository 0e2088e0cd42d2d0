-- Labels and which issues carry them (spec 06 §8).

-- name: list_labels
select * from issue_label where workspace_id = $1 order by lower(name), id limit 1000;

-- name: get_label
select * from issue_label where workspace_id = $1 and id = $2;

-- name: create_label
-- No row when the name is taken.
insert into issue_label (workspace_id, name, color) values ($1, $2, $3)
on conflict do nothing
returning *;

-- name: update_label
update issue_label set name = coalesce($3, name), color = coalesce($4, color), updated_at = now()
where workspace_id = $1 and id = $2
returning *;

-- name: delete_label
delete from issue_label where workspace_id = $1 and id = $2 returning id;

-- name: labels_of
select issue_labels($1) as labels;

-- name: attach
insert into issue_to_label (issue_id, label_id) values ($1, $2) on conflict do nothing;

-- name: detach
delete from issue_to_label where issue_id = $1 and label_id = $2;
