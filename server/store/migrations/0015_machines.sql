-- A machine belongs to somebody in each workspace it is registered in: its runtimes are theirs, and
-- nobody else becomes their owner by naming its id. `key_hash` is the SHA-256 of a secret that our
-- daemon keeps on the machine; a stock daemon has none.
create table machine (
    workspace_id uuid not null references workspace on delete cascade,
    daemon_id text not null,
    owner_id uuid references app_user on delete set null,
    key_hash text,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    primary key (workspace_id, daemon_id)
);
create index machine_owner on machine (owner_id);

-- Whose machine it was when the agent was put on it, once the machine has changed hands: until its
-- owner moves it, or the machine is theirs again or open to all, the agent gets no work there.
alter table agent add column placed_under uuid;

insert into machine (workspace_id, daemon_id, owner_id)
select distinct on (workspace_id, daemon_id) workspace_id, daemon_id, owner_id
from agent_runtime
where daemon_id is not null
order by workspace_id, daemon_id, owner_id is null, last_seen_at desc nulls last, id;

-- Until now each registration made its sender the owner of what it listed, so a machine's runtimes
-- may have several. They are its last owner's; agents of the others wait.
update agent a set placed_under = coalesce(r.owner_id, '00000000-0000-0000-0000-000000000000')
from agent_runtime r join machine k on k.workspace_id = r.workspace_id and k.daemon_id = r.daemon_id
where a.runtime_id = r.id and r.owner_id is distinct from k.owner_id
  and a.owner_id is distinct from k.owner_id;
update agent_runtime r set owner_id = k.owner_id, visibility = 'private'
from machine k
where k.workspace_id = r.workspace_id and k.daemon_id = r.daemon_id
  and r.owner_id is distinct from k.owner_id;
