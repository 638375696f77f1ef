-- Reconciliation: what the nightly comparison of journal, rows, sums, prices and counters found (docs/adr/015).
-- Run by the owner with search_path = control.

-- How far a tenant was compared: the next run begins with this day.
create table reconciled_tenant (
  tenant_id    text primary key references tenant (id),
  next_day     date not null,
  compared_at  timestamptz not null default now()
);

-- One difference each, from the run that found it until it is gone; one that comes back is another one.
create table billing_finding (
  id           bigint generated always as identity primary key,
  tenant_id    text not null references tenant (id),
  check_name   text not null check (check_name in ('journal', 'rollup', 'price', 'counter')),
  kind         text not null,
  subject      text not null,
  what         text not null,
  day          date not null,           -- what is compared again to know whether it is gone
  found_at     timestamptz not null default now(),
  alarmed_at   timestamptz,             -- in the transaction of its audit entry
  ended_at     timestamptz
);
create unique index on billing_finding (tenant_id, kind, subject) where ended_at is null;

-- The runs that came to their end.
create table reconciliation (
  run_id       text primary key,
  finished_at  timestamptz not null default now(),
  tenants      int not null,
  rows         bigint not null,
  found        int not null,
  unread       text[] not null
);

grant select, insert, update on reconciled_tenant, billing_finding, reconciliation to openclaw_gateway;
