-- What decides who may see a private agent and its runs, for statements and for events.

-- Whether `who` may use an agent: the rows `agent.use` and `private agent.use` of server/rights.py.
-- `who` is a user or an agent; null stands for somebody who may use all.
create function may_use_agent(
    agent uuid, visibility text, owner uuid, workspace uuid, who uuid
) returns boolean language sql stable as $$
    select visibility <> 'private' or who is null or coalesce(owner = who, false) or agent = who
        or exists (select from member m
                   where m.workspace_id = workspace and m.user_id = who
                     and m.role in ('owner', 'admin'))
        or exists (select from agent me
                   where me.id = who and me.visibility = 'private' and me.owner_id = owner
                     and me.workspace_id = workspace)
        or exists (select from squad s
                   where s.workspace_id = workspace and s.archived_at is null
                     and (s.leader_id = who
                          or exists (select from squad_member m
                                     where m.squad_id = s.id and m.member_type = 'agent'
                                       and m.member_id = who))
                     and (s.leader_id = agent
                          or exists (select from squad_member m
                                     where m.squad_id = s.id and m.member_type = 'agent'
                                       and m.member_id = agent)))
$$;

-- A run carries whose it is, so that what is told of it needs no look at its agent.
alter table agent_task_queue add column agent_private boolean not null default false;
alter table agent_task_queue add column agent_owner_id uuid;

update agent_task_queue t
set agent_private = a.visibility = 'private', agent_owner_id = a.owner_id
from agent a
where a.id = t.agent_id;

create function run_belongs() returns trigger language plpgsql as $$
begin
    select a.visibility = 'private', a.owner_id into new.agent_private, new.agent_owner_id
    from agent a where a.id = new.agent_id;
    new.agent_private := coalesce(new.agent_private, true);
    return new;
end $$;

-- Again whenever its state changes: an agent made private while a run came into the queue.
create trigger run_belongs before insert or update of status, agent_id on agent_task_queue
    for each row execute function run_belongs();

create function runs_belong() returns trigger language plpgsql as $$
begin
    update agent_task_queue
    set agent_private = new.visibility = 'private', agent_owner_id = new.owner_id
    where agent_id = new.id;
    return null;
end $$;

create trigger runs_belong after update of visibility, owner_id on agent
    for each row
    when (old.visibility is distinct from new.visibility
          or old.owner_id is distinct from new.owner_id)
    execute function runs_belong();

-- Whose an autopilot is: of the agent that leads its work, whether that is private and who owns it,
-- and who made the autopilot.
create function autopilot_whose(
    workspace uuid, assignee_type text, assignee uuid, maker_type text, maker uuid
) returns jsonb language sql stable as $$
    select jsonb_build_object(
        'private', coalesce(bool_or(a.visibility = 'private'), false),
        'agent', min(a.id::text),
        'people', array_remove(array[min(a.owner_id::text),
                                     case when maker_type = 'member' then maker::text end], null),
        'agents', array_remove(array[case when maker_type = 'agent' then maker::text end], null))
    from agent a
    where a.workspace_id = workspace
      and a.id = case when assignee_type = 'squad'
                      then (select s.leader_id from squad s where s.id = assignee)
                      else assignee end
$$;
