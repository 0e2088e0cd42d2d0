-- The labels of an issue as every answer that shows them says it: by name, without regard to case.
create function issue_labels(issue uuid) returns jsonb language sql stable parallel safe
    return coalesce((
        select jsonb_agg(jsonb_build_object(
            'id', l.id, 'workspace_id', l.workspace_id, 'name', l.name, 'color', l.color,
            'created_at', to_char(l.created_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'),
            'updated_at', to_char(l.updated_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'))
            order by lower(l.name), l.id)
        from issue_to_label k join issue_label l on l.id = k.label_id
        where k.issue_id = issue), '[]');
