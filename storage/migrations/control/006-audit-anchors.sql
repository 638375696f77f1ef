-- Signed anchors of the audit chains, and the sessions of the operators' pages (docs/adr/011). Run by the owner with search_path = control.

-- Beside the entry, not part of its hash: the workflow's run that wrote it.
alter table audit_entry add column run_id text;
create index on audit_entry (ts, chain, seq);
drop index audit_entry_ts_idx;

-- Public keys that anchors are signed with; each has its entry `audit-key.create` on the chain "system".
create table audit_key (
  id            text primary key check (id ~ '^[0-9a-f]{64}$'),  -- SHA-256 of public_key
  public_key    bytea not null,                                  -- SubjectPublicKeyInfo
  created_at    timestamptz not null default now()
);

-- What was signed: at `ts` entry `seq` of the chain had this hash. No reference to the key: an anchor is checked, not trusted.
create table audit_anchor (
  chain         text not null,
  seq           bigint not null check (seq > 0),
  hash          text not null,
  run           text,
  ts            timestamptz not null,
  key_id        text not null,
  signature     text not null,
  primary key (key_id, chain, seq, ts)
);
create index on audit_anchor (chain, seq);

create trigger audit_key_is_final before update or delete on audit_key for each row execute function refuse_audit_change();
create trigger audit_key_is_kept before truncate on audit_key for each statement execute function refuse_audit_change();
create trigger audit_anchor_is_final before update or delete on audit_anchor for each row execute function refuse_audit_change();
create trigger audit_anchor_is_kept before truncate on audit_anchor for each statement execute function refuse_audit_change();

-- A login of an administrator's browser: ends with its key, in every process, because each request reads this row with the key's.
create table admin_session (
  id_hash       bytea primary key check (octet_length(id_hash) = 32),
  key_id        text not null,
  key_hash      bytea not null check (octet_length(key_hash) = 32),
  created_at    timestamptz not null default now(),
  expires_at    timestamptz not null,
  revoked_at    timestamptz
);
create index on admin_session (expires_at);

grant select, insert on audit_key, audit_anchor to openclaw_gateway;
grant select, insert, update, delete on admin_session to openclaw_gateway;
