-- Issues by who is to do them (spec 06 §6.1).

-- name: by_assignee
-- The first page of each group, with the group's full count. /*order*/ is one of work.ORDERS.
-- $1 workspace, $2 statuses, $3 priorities, $4 assignee types, $5 assignee ids, $6 and $7 pairs of
-- assignee type and id, $8 unassigned ones too, $9 projects, $10 those of no project too, $11 labels,
-- $12 and $13 pairs of creator type and id, $14 to $16 a date and its limits, $17 only with dates,
-- $18 metadata, $19 only one group, $20 and $21 its type and id, $22 limit, $23 offset
with matching as materialized (
    select i.*
    from issue i
    where i.workspace_id = $1
        and ($2::text[] is null or i.status = any($2))
        and ($3::text[] is null or i.priority = any($3))
        and (case when $4::text[] is null and $5::uuid[] is null and $6::text[] is null
                  then not $8::boolean or i.assignee_id is null
                  else (i.assignee_id is not null
                        and ($4 is null or i.assignee_type = any($4))
                        and ($5 is null or i.assignee_id = any($5))
                        and ($6 is null or exists (
                            select from unnest($6, $7::uuid[]) as p (kind, id)
                            where p.kind = i.assignee_type and p.id = i.assignee_id)))
                    or ($8 and i.assignee_id is null) end)
        and (case when $9::uuid[] is null then not $10::boolean or i.project_id is null
                  else i.project_id = any($9) or ($10 and i.project_id is null) end)
        and ($11::uuid[] is null or exists (
            select from issue_to_label l where l.issue_id = i.id and l.label_id = any($11)))
        and ($12::text[] is null or exists (
            select from unnest($12, $13::uuid[]) as p (kind, id)
            where p.kind = i.creator_type and p.id = i.creator_id))
        and ($14::text is null
            or (case when $14 = 'updated_at' then i.updated_at else i.created_at end >= $15
            and case when $14 = 'updated_at' then i.updated_at else i.created_at end < $16))
        and (not $17::boolean or i.start_date is not null or i.due_date is not null)
        and ($18::jsonb is null or i.metadata @> $18)
        and (not $19::boolean
            or (i.assignee_type is not distinct from $20
                and ($21::uuid is null or i.assignee_id = $21)))
), team as materialized (
    select assignee_type as team_type, assignee_id as team_id, count(*) as total
    from matching
    group by assignee_type, assignee_id
    order by assignee_id is null, total desc, assignee_type, assignee_id
    limit 200
), placed as (
    select m.*, row_number() over (partition by m.assignee_type, m.assignee_id
                                   order by /*order*/ m.created_at desc, m.id) as place
    from matching m
)
select team.team_type, team.team_id, team.total, page.*, w.issue_prefix,
       issue_labels(page.id) as labels
from team
    join workspace w on w.id = $1
    left join placed page on page.assignee_type is not distinct from team.team_type
        and page.assignee_id is not distinct from team.team_id
        and page.place > $23::bigint and page.place <= $22::bigint + $23::bigint
order by team.team_id is null, team.total desc, team.team_type, team.team_id, page.place;

-- name: assignee_frequency
-- Whom somebody gives work to, most often first: what they assigned on making issues and later.
-- $1 workspace, $2 and $3 who
select given.kind as assignee_type, given.id as assignee_id, count(*) as frequency
from (
    select a.details ->> 'to_type' as kind, (a.details ->> 'to_id')::uuid as id
    from activity_log a
    where a.workspace_id = $1 and a.actor_type = $2 and a.actor_id = $3
      and a.action = 'assignee_changed' and a.details ->> 'to_id' is not null
    union all
    select coalesce(f.details ->> 'from_type', i.assignee_type),
           coalesce((f.details ->> 'from_id')::uuid, i.assignee_id)
    from issue i
    left join lateral (
        select a.details from activity_log a
        where a.issue_id = i.id and a.action = 'assignee_changed'
        order by a.created_at, a.id
        limit 1
    ) f on true
    where i.workspace_id = $1 and i.creator_type = $2 and i.creator_id = $3
      and case when f.details is null then i.assignee_id is not null
               else f.details ->> 'from_id' is not null end
) given
group by given.kind, given.id
order by frequency desc, given.kind, given.id
limit 100;
