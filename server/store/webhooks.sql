-- Calls from outside that start autopilots, each on record (spec 02 §3.9).

-- name: trigger_by_token
-- The trigger and its autopilot. $1 token
select t.id, t.autopilot_id, t.enabled, t.provider, t.signing_secret, t.event_filters, t.timezone,
       p.workspace_id, p.status as autopilot_status
from autopilot_trigger t join autopilot p on p.id = t.autopilot_id
where t.webhook_token = $1 and t.kind = 'webhook';

-- name: trigger_by_id
-- As trigger_by_token. $1 trigger
select t.id, t.autopilot_id, t.enabled, t.provider, t.signing_secret, t.event_filters, t.timezone,
       p.workspace_id, p.status as autopilot_status
from autopilot_trigger t join autopilot p on p.id = t.autopilot_id
where t.id = $1;

-- name: recent
-- How many calls came in the last minute. $1 trigger
select count(*) from webhook_delivery
where trigger_id = $1 and received_at > now() - interval '1 minute';

-- name: record
-- No row when a call with this key, or with the same signed content, was taken already. $1 workspace, $2 autopilot, $3 trigger,
-- $4 provider, $5 event, $6 key, $7 what of the signature, $8 status, $9 content type, $10 body,
-- $11 error, $12 the call it repeats, or null, $13 what was signed
insert into webhook_delivery (workspace_id, autopilot_id, trigger_id, provider, event, dedupe_key,
    signature_status, status, content_type, raw_body, error, replayed_from_id, attempt_count,
    last_attempt_at, signed_key)
values ($1, $2, $3, $4, $5, nullif($6, ''), $7, $8, $9, $10, nullif($11, ''), $12, 1, now(),
    nullif($13, ''))
on conflict do nothing
returning id;

-- name: earlier
-- The call that had the key, or the same signed content. $1 trigger, $2 key, $3 what was signed
select id, autopilot_run_id from webhook_delivery
where trigger_id = $1 and status not in ('rejected', 'failed')
  and (dedupe_key = $2 or signed_key = $3)
order by signed_key = $3 desc nulls last
limit 1;

-- name: link
update webhook_delivery set autopilot_run_id = $2 where id = $1;

-- name: list_calls
select * from webhook_delivery where autopilot_id = $1
order by received_at desc, id limit $2::bigint offset $3::bigint;

-- name: read_call
select * from webhook_delivery where autopilot_id = $1 and id = $2;
