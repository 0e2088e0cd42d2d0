-- What an agent knows, as every answer that shows the agent says it: by name, without the text.
create function agent_skills(agent uuid) returns jsonb language sql stable parallel safe
    return coalesce((
        select jsonb_agg(jsonb_build_object(
            'id', s.id, 'name', s.name, 'description', s.description) order by s.name, s.id)
        from agent_skill k join skill s on s.id = k.skill_id
        where k.agent_id = agent), '[]');
