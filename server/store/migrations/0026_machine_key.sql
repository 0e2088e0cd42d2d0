-- By what two ids of daemons are the same machine's: neither case nor blanks around count. The one
-- place where it is said; the daemon's side of it is `machine_key` in shared/ids.py.
create function machine_key(daemon_id text) returns text
language sql immutable parallel safe as $$ select lower(btrim(daemon_id, E' \t\n\r\f\v')) $$;
