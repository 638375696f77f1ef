-- Live processes, and which of them serves which tenant (docs/adr/022). Times are the database's own.
-- Run by the owner with search_path = control.

create table process (
  id            text primary key,   -- of one start; never given again
  role          text not null check (role in ('all', 'gateway', 'worker')),
  host          text not null,
  machine       text not null,      -- where pid and started_at_ticks mean something: the boot and the pid namespace
  pid           int not null,
  started_at_ticks text not null,
  home_id       text not null,
  since         timestamptz not null default now(),
  expires_at    timestamptz not null,
  draining      boolean not null default false
);

-- Of every placement that was ever taken: a lease that was lost and taken again is another one.
create sequence placement_epoch;

-- Who serves an owner (a tenant, or "_system") now. A holder whose process has expired holds nothing; the row stays until it is taken over.
create table placement (
  owner         text primary key,
  holder        text not null,
  epoch         bigint not null,
  taken_at      timestamptz not null default now()
);
create index on placement (holder);

-- The home that holds the tenant's directory; null until a worker that has the directory takes the tenant.
alter table tenant add column home_id text;

grant select, insert, update, delete on process, placement to openclaw_gateway;
grant usage on sequence placement_epoch to openclaw_gateway;
-- A tenant's transaction locks its own row for share; Postgres asks for a right to update for that.
grant select, update (taken_at) on placement to openclaw_tenant;
alter table placement enable row level security;
create policy own_rows on placement to openclaw_tenant using (owner = control.current_tenant()) with check (owner = control.current_tenant());
create policy every_row on placement to openclaw_gateway using (true) with check (true);
