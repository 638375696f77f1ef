-- Files of the tenant and what its calls keep for a while, sealed in pieces (docs/adr/018): what a caller uploaded, the audio that a
-- call is about, and the answer of a call that is too large for its turn's row.
create table file (
  id          text primary key,
  role        text not null check (role in ('upload', 'input', 'result')),
  state       text not null check (state in ('writing', 'ready', 'deleted')),
  purpose     text,
  filename    text not null,
  mime        text not null,
  size_bytes  bigint not null default 0,
  sha256      bytea,
  created_at  timestamptz not null default now(),
  expires_at  timestamptz,
  deleted_at  timestamptz
);
create index on file (expires_at) where expires_at is not null;

create table file_piece (
  file_id  text not null references file (id) on delete cascade,
  n        int not null,
  sealed   bytea not null,
  primary key (file_id, n)
);
-- Sealed bytes do not compress.
alter table file_piece alter column sealed set storage external;
