-- Sessions are rows, so that they end when they are ended; a signed token without a row is worth
-- nothing, and whoever was signed in before signs in anew.

create table session (
    id uuid primary key default gen_random_uuid(),
    user_id uuid not null references app_user on delete cascade,
    token_hash text not null unique,
    kind text not null check (kind in ('link', 'code', 'command_line')),
    -- The personal token it was made with, however many sessions and links lie between: it ends with it.
    personal_token_id uuid references personal_access_token on delete cascade,
    user_agent text not null default '',
    expires_at timestamptz not null,
    last_used_at timestamptz not null default now(),
    created_at timestamptz not null default now()
);
create index session_of_user on session (user_id);
create index session_personal_token on session (personal_token_id)
    where personal_token_id is not null;
create index session_expiry on session (expires_at);

alter table sign_in_link
    add column personal_token_id uuid references personal_access_token on delete cascade;
create index sign_in_link_personal_token on sign_in_link (personal_token_id)
    where personal_token_id is not null;

-- What all servers on this database have to agree on.
create table server_secret (
    name text primary key,
    value text not null,
    created_at timestamptz not null default now()
);

-- A sign-in code counts for whoever asked for it: the browser that has the nonce, or the address.
alter table verification_code
    add column asker_hash text,
    add column peer text not null default '',
    add column peer_attempts int not null default 0;

-- What of a signed call was signed: the same again is a repeat, whatever its headers say.
alter table webhook_delivery add column signed_key text;
create unique index webhook_delivery_signed_once on webhook_delivery (trigger_id, signed_key)
    where signed_key is not null and status not in ('rejected', 'failed');
