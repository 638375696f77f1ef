-- Encryption at rest (docs/adr/010): data keys wrapped by a key-encryption key that is never in the database.
-- Run by the owner with search_path = control.

-- One row: the id of the key that wraps data keys now. A process that holds no key of this id does not start.
create table key_encryption (
  only_row      boolean primary key default true check (only_row),
  kek_id        text not null,
  changed_at    timestamptz not null default now()
);

-- Data keys of the tenants and of the system (owner "_system"). An erased key is never replaced by a new one.
create table data_key (
  owner         text not null,
  version       int not null check (version > 0),
  wrapped       bytea,
  kek_id        text not null,
  state         text not null check (state in ('current', 'readable', 'erased')),
  rotation_id   text,  -- the rotation that made it; null: made for a new owner
  created_at    timestamptz not null default now(),
  primary key (owner, version),
  check ((state = 'erased') = (wrapped is null))
);
create unique index data_key_current on data_key (owner) where state = 'current';
create index on data_key (kek_id) where wrapped is not null;

-- Live processes and the key-encryption keys that they hold: a rotation waits until all hold the new one.
create table key_holder (
  id            text primary key,
  place         text not null,
  kek_ids       text[] not null,
  seen_at       timestamptz not null default now()
);

create table key_rotation (
  id            text primary key,
  state         text not null default 'requested' check (state in ('requested', 'done', 'failed')),
  kek_id        text,  -- the key that it rotates to, once that is known
  report        jsonb,
  requested_at  timestamptz not null default now(),
  ended_at      timestamptz
);
create unique index key_rotation_at_once on key_rotation ((true)) where state = 'requested';

-- Answers of admin changes that carried a credential, sealed, for repeats under the same Idempotency-Key within 24 hours.
create table sealed_answer (
  op_id         text not null,
  command_hash  text not null,
  owner         text not null,
  subject       text not null,   -- whose credential it is: the next rotation or revocation of it erases the answer
  answer        bytea not null,
  live          boolean not null default false,  -- the change was made
  created_at    timestamptz not null default now(),
  primary key (op_id, command_hash)
);
create index on sealed_answer (subject) where live;
create index on sealed_answer (created_at);

grant select, insert, update on key_encryption, data_key, key_rotation to openclaw_gateway;
grant select, insert, update, delete on key_holder, sealed_answer to openclaw_gateway;
