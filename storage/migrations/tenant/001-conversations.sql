-- A tenant's own schema. Run by the owner with search_path = the tenant's schema; the tenant's role may read and write rows
-- (granted after each migration), never change the tables.

create table session (
  id          text primary key,
  channel     text not null,
  created_at  timestamptz not null default now(),
  updated_at  timestamptz not null default now(),
  next_seq    bigint not null default 1
) with (fillfactor = 80);
create index on session (updated_at);

-- Every turn, stateless ones too: their session id has no row in `session`, so there is no foreign key.
create table turn (
  id              text primary key,
  session_id      text not null,
  kind            text not null,  -- the billing reason: chat, cron, …
  state           text not null check (state in ('queued', 'running', 'done', 'failed', 'aborted', 'void')),
  mode            text not null,
  stateless       boolean not null default false,
  created_at      timestamptz not null default now(),
  started_at      timestamptz,
  finished_at     timestamptz,
  request         jsonb,
  reply           jsonb,
  error           jsonb
) with (fillfactor = 80);
create index on turn (session_id, created_at);
create index on turn (created_at) where state in ('queued', 'running');

create table message (
  session_id  text not null references session (id) on delete cascade,
  seq         bigint not null,
  role        text not null,
  turn_id     text,
  at          timestamptz not null default now(),
  content     jsonb not null,
  primary key (session_id, seq)
);
create index on message (turn_id);

-- The journal: a call is `started` here before the provider is called, and `done` with its reply; a retry finds it.
create table model_call (
  id                   text primary key,  -- <turn id>.<step>
  turn_id              text not null references turn (id) on delete cascade,
  step                 int not null,
  state                text not null check (state in ('started', 'done', 'void')),
  attempt              int not null default 1,
  model                text not null,
  started_at           timestamptz not null default now(),
  finished_at          timestamptz,
  provider_request_id  text,
  usage                jsonb,
  reply                jsonb,
  unique (turn_id, step)
) with (fillfactor = 80);
create index on model_call (started_at) where state = 'started';

create table tool_run (
  id           text primary key,  -- <turn id>.<step>.<n>
  turn_id      text not null references turn (id) on delete cascade,
  step         int not null,
  n            int not null,
  tool_call_id text not null,  -- the provider's
  name         text not null,
  state        text not null check (state in ('started', 'done', 'failed')),
  attempt      int not null default 1,
  started_at   timestamptz not null default now(),
  finished_at  timestamptz,
  arguments    text not null,  -- as the model wrote it, which need not be JSON
  result       jsonb,
  unique (turn_id, step, n)
) with (fillfactor = 80);

create table idempotency_key (
  key_hash     bytea primary key,
  fingerprint  bytea not null,
  turn_id      text not null,
  expires_at   timestamptz not null
);
create index on idempotency_key (expires_at);
