-- Up to when runs that closed are archived (docs/adr/024). One row.
create table archive_progress (
  id            boolean primary key default true check (id),
  closed_until  timestamptz not null,
  finished_at   timestamptz not null default now()
);
grant select, insert, update on archive_progress to openclaw_gateway;
