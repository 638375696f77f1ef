-- Invoices: what was told to Stripe of a tenant's usage (docs/adr/014). Run by the owner with search_path = control.

-- Amounts of the monthly platform fee by the day from which they count. A month's fee is the amount in force on the day it falls due.
create table platform_fee (
  valid_from    date primary key,
  nano_usd      bigint not null check (nano_usd >= 0)
);

-- A tenant that is mapped to a customer. Live and test mode know nothing of each other.
create table invoice_account (
  tenant_id     text not null references tenant (id),
  mode          text not null check (mode in ('live', 'test')),
  customer      text not null,
  first_day     date not null,                    -- earlier days are not told
  has_schedule  boolean not null default false,   -- Temporal may hold the schedule `invoice:<tenant>`
  closed_at     timestamptz,                      -- the tenant is erased, and all of it was told
  primary key (tenant_id, mode)
);

-- One meter event each: the cursor, and the outbox. The amount never changes; a late settlement is the day's next revision.
create table invoice_event (
  tenant_id       text not null,
  mode            text not null,
  kind            text not null check (kind in ('usage', 'platform_fee')),
  day             date not null,
  revision        int not null check (revision > 0),
  value_nano_usd  bigint not null check (value_nano_usd > 0),
  state           text not null default 'open' check (state in ('open', 'sent', 'refused', 'held', 'dropped')),
  customer        text,         -- as it was sent last
  event_name      text,
  identifier      text,
  attempts        int not null default 0,
  unclear_since   timestamptz,  -- first attempt that Stripe may have taken although no answer said so
  attempted_at    timestamptz,
  reason          text,
  planned_at      timestamptz not null default now(),
  decided_at      timestamptz,
  primary key (tenant_id, mode, kind, day, revision),
  foreign key (tenant_id, mode) references invoice_account (tenant_id, mode)
);
create index on invoice_event (tenant_id, mode, day) where state in ('open', 'refused', 'held');

-- Nobody changes what an event says, and none is taken away.
create function refuse_invoice_change() returns trigger language plpgsql as $$
begin
  raise exception 'the amount of an invoice event is never changed, and none is removed';
end $$;
create trigger invoice_event_keeps_value before update on invoice_event for each row
  when (old.value_nano_usd <> new.value_nano_usd) execute function refuse_invoice_change();
create trigger invoice_event_is_kept before delete on invoice_event for each row execute function refuse_invoice_change();

grant select, insert, update on platform_fee, invoice_account, invoice_event to openclaw_gateway;
