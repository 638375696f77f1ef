-- Overlays: what turns use is the last accepted text, here, so that every process sees the same (contract §8).
-- Run by the owner with search_path = control.

-- Texts by their SHA-256, sealed with the tenant's data key. A text is written before the audited change that makes it the one
-- in force, so that no text enters Temporal; one that was replaced stays for the turns that began with it.
create table overlay_text (
  tenant_id     text not null references tenant (id),
  digest        text not null check (digest ~ '^[0-9a-f]{64}$'),
  sealed        bytea not null,
  used_at       timestamptz not null default now(),
  accepted_at   timestamptz,           -- null: it was never in force
  primary key (tenant_id, digest)
);

create table overlay (
  tenant_id     text primary key references tenant (id),
  version       bigint not null,       -- rises with every accepted text
  digest        text not null check (digest ~ '^[0-9a-f]{64}$'),
  -- What is wrong with a home's file, which stops the tenant's turns: {file, digest, message, param}. Null: nothing.
  fault         jsonb,
  changed_at    timestamptz not null default now()
);

-- What each home's file of a tenant last held that was dealt with: another content is an operator's edit.
create table overlay_file (
  file          text not null,
  tenant_id     text not null references tenant (id),
  digest        text not null,
  primary key (file, tenant_id)
);

grant select, insert, update, delete on overlay_text, overlay_file to openclaw_gateway;
grant select, insert, update on overlay to openclaw_gateway;
