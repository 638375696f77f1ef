-- Histories of the tenant's closed runs, for longer than Temporal keeps them (docs/adr/024). Payloads stay encrypted under the tenant's key, as
-- they are in Temporal. A run that has no row here is not archived yet: its row is written behind its last piece.
create table archived_run (
  run_id       text primary key,
  workflow_id  text not null,
  type         text not null,
  status       text not null,  -- as Temporal names it: COMPLETED, FAILED, CONTINUED_AS_NEW, …
  started_at   timestamptz not null,
  closed_at    timestamptz not null,
  events       int not null,
  size_bytes   bigint not null,
  archived_at  timestamptz not null default now()
);
create index on archived_run (closed_at, run_id);
create index on archived_run (workflow_id, closed_at);

-- temporal.api.history.v1.History, a page each, gzipped.
create table archived_run_piece (
  run_id  text not null,
  n       int not null,
  bytes   bytea not null,
  primary key (run_id, n)
);
-- It is compressed already.
alter table archived_run_piece alter column bytes set storage external;
