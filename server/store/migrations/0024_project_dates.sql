-- When a project is meant to begin and to be done.
alter table project
    add column start_date date,
    add column due_date date;
