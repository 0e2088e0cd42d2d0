-- What people keep at hand (spec 02 §1.4).

-- name: list_pins
-- Those whose issue or project is still there, in their order. $1 workspace, $2 whose
select p.*, coalesce(i.title, j.title) as title, coalesce(i.status, j.status) as status, j.icon,
       case when i.id is null then null else w.issue_prefix || '-' || i.number end as identifier
from pinned_item p
join workspace w on w.id = p.workspace_id
left join issue i on p.item_type = 'issue' and i.id = p.item_id
left join project j on p.item_type = 'project' and j.id = p.item_id
where p.workspace_id = $1 and p.user_id = $2 and coalesce(i.id, j.id) is not null
order by p.position, p.created_at, p.id
limit 500;

-- name: pin
-- At the end; nothing when it is pinned or does not exist. $1 workspace, $2 whose, $3 type, $4 item
insert into pinned_item (workspace_id, user_id, item_type, item_id, position)
select $1, $2, $3::text, $4, (
    select coalesce(max(position), 0) + 1 from pinned_item where workspace_id = $1 and user_id = $2)
where case $3::text
    when 'issue' then exists (select from issue where workspace_id = $1 and id = $4)
    else exists (select from project where workspace_id = $1 and id = $4) end
on conflict (workspace_id, user_id, item_type, item_id) do nothing;

-- name: unpin
delete from pinned_item
where workspace_id = $1 and user_id = $2 and item_type = $3 and item_id = $4
returning id;

-- name: reorder
-- $1 workspace, $2 whose, $3 pins in their new order
update pinned_item p set position = n.place
from unnest($3::uuid[]) with ordinality as n (id, place)
where p.workspace_id = $1 and p.user_id = $2 and p.id = n.id;
