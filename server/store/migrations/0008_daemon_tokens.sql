-- Who made a daemon's token owns what the daemon registers: without an owner nothing can be claimed.
alter table daemon_token
    add column created_by uuid references app_user on delete cascade,
    add column name text not null default '',
    add column last_used_at timestamptz;
create index daemon_token_created_by on daemon_token (created_by);
