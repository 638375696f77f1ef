-- Control schema: tenants, credentials, rate cards, the usage ledger and the outbox of open turns.
-- Run by the owner with search_path = control. Who may do what:
--   openclaw_gateway  the login role of our processes; sees every tenant's rows here, owns nothing
--   openclaw_tenant   what every tenant's role inherits; sees and writes its own rows only (row level security)

grant usage on schema control to openclaw_gateway, openclaw_tenant;

-- The tenant that the current role stands for, or null. Slugs hold no underscore, so the mapping has one way back.
create function current_tenant() returns text language sql stable parallel safe as
$$ select case when starts_with(current_user::text, 'tenant_') then replace(substr(current_user::text, 8), '_', '-') end $$;

create table tenant (
  id            text primary key check (id ~ '^(?=.{1,32}$)[a-z0-9](-?[a-z0-9])*$'),
  display_name  text,
  state         text not null default 'active' check (state in ('active', 'suspended', 'deleted')),
  os_uid_index  int not null unique check (os_uid_index >= 0),
  token_epoch   int not null default 1,
  markup_ppm    int check (markup_ppm >= 0),
  created_at    timestamptz not null default now()
);

create table tenant_token (
  hash          bytea primary key check (octet_length(hash) = 32),
  tenant_id     text not null references tenant (id),
  created_at    timestamptz not null default now(),
  last_used_at  timestamptz,
  revoked_at    timestamptz
);
create index on tenant_token (tenant_id);

create table admin_key (
  id            text primary key check (id ~ '^[a-z0-9]{1,16}$'),
  hash          bytea not null check (octet_length(hash) = 32),
  scopes        text[] not null,
  created_at    timestamptz not null default now(),
  last_used_at  timestamptz,
  revoked_at    timestamptz
);

create table rate_card (
  hash          text primary key,
  body          jsonb not null,
  valid_from    timestamptz not null default now()
);
create index on rate_card (valid_from);

-- Which tenant schemas exist and how far they are migrated: so that "nothing to do" is one query for all tenants.
create table tenant_schema (
  tenant_id     text primary key,
  version       int not null
);

-- One row per model call. Not partitioned: a partitioned table could be unique only together with the timestamp, and a repeat
-- of a call must find its row whatever time it carries. Immutable: nobody but the owner may update or delete.
create table usage_ledger (
  id                      text primary key,
  tenant_id               text not null,
  session_id              text not null,
  "timestamp"             timestamptz not null,
  model                   text not null,
  reason                  text not null,
  provider_request_id     text,
  input_tokens            bigint not null check (input_tokens >= 0),
  cache_read_tokens       bigint not null check (cache_read_tokens >= 0),
  cache_write_tokens      bigint not null check (cache_write_tokens >= 0),
  output_tokens           bigint not null check (output_tokens >= 0),
  reasoning_tokens        bigint not null check (reasoning_tokens >= 0),
  tool_calls              int not null default 0 check (tool_calls >= 0),
  cost_nano_usd           bigint not null check (cost_nano_usd >= 0),
  provider_cost_nano_usd  bigint not null check (provider_cost_nano_usd >= 0),
  markup_ppm              int not null check (markup_ppm >= 0),
  rate_card_hash          text not null,
  estimated               boolean not null default false
);
create index on usage_ledger (tenant_id, "timestamp");

-- The ledger summed by UTC day of admission, in the columns of the billing CSV.
create table usage_daily (
  tenant_id         text not null,
  day               date not null,
  model             text not null,
  tokens_in         bigint not null,
  tokens_out        bigint not null,
  tokens_cached     bigint not null,
  reasoning_tokens  bigint not null,
  tool_calls        bigint not null,
  cost_nano_usd     bigint not null,
  calls             bigint not null,
  primary key (tenant_id, day, model)
) with (fillfactor = 50);
create index on usage_daily (day);

-- Runs as the owner, so a tenant's role can move its sums only by writing a ledger row. A repeat that the ledger ignores
-- (on conflict do nothing) does not come here.
create function add_to_usage_daily() returns trigger language plpgsql security definer set search_path = control, pg_temp as $$
begin
  insert into control.usage_daily as sum
  values (new.tenant_id, (new."timestamp" at time zone 'UTC')::date, new.model, new.input_tokens + new.cache_write_tokens,
          new.output_tokens, new.cache_read_tokens, new.reasoning_tokens, new.tool_calls, new.cost_nano_usd, 1)
  on conflict (tenant_id, day, model) do update set
    tokens_in        = sum.tokens_in + excluded.tokens_in,
    tokens_out       = sum.tokens_out + excluded.tokens_out,
    tokens_cached    = sum.tokens_cached + excluded.tokens_cached,
    reasoning_tokens = sum.reasoning_tokens + excluded.reasoning_tokens,
    tool_calls       = sum.tool_calls + excluded.tool_calls,
    cost_nano_usd    = sum.cost_nano_usd + excluded.cost_nano_usd,
    calls            = sum.calls + 1;
  return null;
end $$;
revoke execute on function add_to_usage_daily() from public;

create trigger usage_daily_sum after insert on usage_ledger for each row execute function add_to_usage_daily();

-- Outbox of turns that are not finished, swept by a relay: written with the turn's row, deleted with its reply.
create table open_turn (
  tenant_id   text not null,
  turn_id     text not null,
  lane        text not null,
  kind        text not null,
  created_at  timestamptz not null default now(),
  attempts    int not null default 0,  -- times that the relay has sent it again
  due_at      timestamptz,             -- when it is due to be sent again
  primary key (tenant_id, turn_id)
);
create index on open_turn (created_at);

-- Grants. TRUNCATE, REFERENCES and TRIGGER are nobody's.
grant select, insert, update on tenant, tenant_token, admin_key, rate_card to openclaw_gateway;
grant select on tenant_schema, usage_daily to openclaw_gateway;
grant select, insert on usage_ledger to openclaw_gateway;
grant select, insert, update, delete on open_turn to openclaw_gateway;
grant select on usage_daily to openclaw_tenant;
grant select, insert on usage_ledger to openclaw_tenant;
grant select, insert, update, delete on open_turn to openclaw_tenant;

-- Row level security: a tenant's role meets its own rows only, in what it reads and in what it writes.
alter table usage_ledger enable row level security;
alter table usage_daily enable row level security;
alter table open_turn enable row level security;
create policy own_rows on usage_ledger to openclaw_tenant using (tenant_id = control.current_tenant()) with check (tenant_id = control.current_tenant());
create policy own_rows on usage_daily to openclaw_tenant using (tenant_id = control.current_tenant()) with check (tenant_id = control.current_tenant());
create policy own_rows on open_turn to openclaw_tenant using (tenant_id = control.current_tenant()) with check (tenant_id = control.current_tenant());
create policy every_row on usage_ledger to openclaw_gateway using (true) with check (true);
create policy every_row on usage_daily to openclaw_gateway using (true) with check (true);
create policy every_row on open_turn to openclaw_gateway using (true) with check (true);
