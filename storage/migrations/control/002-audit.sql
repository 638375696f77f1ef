-- Audit: hash-chained entries of every state change, one chain per tenant and the chain "system" (contract §7, docs/adr/007).
-- Run by the owner with search_path = control.

create table audit_entry (
  chain         text not null,
  seq           bigint not null check (seq > 0),
  ts            timestamptz not null,
  actor_type    text not null check (actor_type in ('admin', 'tenant', 'system')),
  actor_id      text not null,
  action        text not null,
  tenant        text,
  target        text not null,
  outcome       text not null check (outcome in ('applied', 'refused')),
  request_id    text not null,
  workflow_id   text not null,
  prev          text not null check (prev ~ '^[0-9a-f]{64}$'),
  hash          text not null check (hash ~ '^[0-9a-f]{64}$'),
  -- Beside the entry, not part of its hash: what a repeat of the same operation is answered.
  op_id         text not null,
  answer        jsonb not null,
  recorded_at   timestamptz not null default now(),
  primary key (chain, seq)
);
create index on audit_entry (chain, op_id);
create index on audit_entry (ts);

-- Where each chain ends. Whoever appends locks this row first.
create table chain_head (
  chain         text primary key,
  seq           bigint not null check (seq >= 0),
  hash          text not null
);

-- How far each home's audit.jsonl is known to be on disk. The entries themselves are the outbox: every home has the whole file.
create table audit_file (
  file          text not null,
  chain         text not null,
  seq           bigint not null,
  primary key (file, chain)
);

-- Idempotency-Keys of the admin side, for 24 hours: the same key with another request is a mistake of the caller's.
create table admin_idempotency (
  op_id         text primary key,
  fingerprint   text not null,
  created_at    timestamptz not null default now()
);
create index on admin_idempotency (created_at);

-- Nobody changes what was recorded, not even the owner by accident.
create function refuse_audit_change() returns trigger language plpgsql as $$
begin
  raise exception 'audit entries are never changed or removed';
end $$;
create trigger audit_entry_is_final before update or delete on audit_entry for each row execute function refuse_audit_change();
create trigger audit_entry_is_kept before truncate on audit_entry for each statement execute function refuse_audit_change();

grant select, insert on audit_entry to openclaw_gateway;
grant select, insert, update on chain_head, audit_file to openclaw_gateway;
grant select, insert, update, delete on admin_idempotency to openclaw_gateway;
