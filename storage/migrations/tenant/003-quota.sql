-- Quota leases (docs/adr/012): who may open calls and turns, and what each call has reserved.

-- A lease is spent only while its row stands: whoever opens a call locks the row in the same transaction, so that a lease that was
-- taken back can open nothing more.
create table quota_lease (
  holder      text primary key,
  created_at  timestamptz not null default now()
);

alter table turn
  add column holder text,
  add column batch int;
create index on turn (holder, batch) where holder is not null;

alter table model_call
  add column holder text,
  add column batch int,
  add column day date,
  add column reserved_tokens bigint,
  add column reserved_nano_usd bigint;
create index on model_call (holder, batch) where holder is not null;
