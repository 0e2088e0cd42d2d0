-- Attached files are kept here: several servers share nothing but Postgres, and a backup is whole.
create table attachment_content (
    attachment_id uuid primary key references attachment on delete cascade,
    data bytea not null
);
alter table attachment_content alter column data set storage external;
