-- A tenant's life: its ceilings, its end, and its schema made inside the transaction that makes the tenant.
-- Run by the owner with search_path = control.

-- Null: no ceiling.
alter table tenant
  add column tokens_per_day          bigint check (tokens_per_day >= 0),
  add column cost_per_day_nano_usd   bigint check (cost_per_day_nano_usd >= 0),
  add column requests_per_minute     int check (requests_per_minute >= 0),
  add column deleted_at              timestamptz,  -- refused everywhere since
  add column erased_at               timestamptz;  -- nothing but its bills and its audit is left

-- A closed chain has had its last entry.
alter table chain_head add column closed boolean not null default false;

-- What a new tenant's schema is made of; written by each start of the program from its migration files.
create table tenant_template (
  only_one       boolean primary key default true check (only_one),
  version        int not null,
  shared_schema  text not null,
  statements     text not null
);

-- Makes a tenant's role and schema with the owner's rights, in the caller's transaction: a tenant is there as a whole or not at all.
-- It does nothing else, whatever it is given, so that the gateway's role need not make roles and schemas itself.
create function make_tenant_schema(tenant text) returns void language plpgsql security definer set search_path = control, pg_temp as $$
declare
  name      text := 'tenant_' || replace(tenant, '-', '_');
  template  control.tenant_template;
begin
  if tenant !~ '^(?=.{1,32}$)[a-z0-9](-?[a-z0-9])*$' then
    raise exception 'not a tenant id';
  end if;
  select * into strict template from control.tenant_template;
  perform pg_advisory_xact_lock(hashtext('openclaw tenant schema'), hashtext(name));
  -- Roles belong to the whole server: another database's process may be at them in the same moment, and is refused, not queued.
  for attempt in 1..10 loop
    begin
      if to_regrole(name) is null then
        execute format('create role %I nologin nosuperuser nocreatedb nocreaterole noinherit', name);
      end if;
      execute format('grant openclaw_tenant to %I with inherit true, set false', name);
      execute format('grant %I to openclaw_gateway with inherit false, set true', name);
      exit;
    exception when internal_error or unique_violation or duplicate_object then
      if attempt = 10 then
        raise;
      end if;
      perform pg_sleep(0.02 * attempt);
    end;
  end loop;
  if to_regnamespace(name) is not null then
    return; -- left by an earlier version's interrupted attempt, which also noted how far it is migrated
  end if;
  execute format('create schema %I', name);
  perform set_config('search_path', format('%I, %s', name, template.shared_schema), true);
  execute template.statements;
  execute format('grant usage on schema %I to %I', name, name);
  execute format('grant select, insert, update, delete on all tables in schema %I to %I', name, name);
  execute format('grant usage on all sequences in schema %I to %I', name, name);
  execute format('revoke insert, update, delete on %I.schema_version from %I', name, name);
  insert into control.tenant_schema (tenant_id, version) values (tenant, template.version)
  on conflict (tenant_id) do update set version = excluded.version;
end $$;
revoke execute on function make_tenant_schema(text) from public;
grant execute on function make_tenant_schema(text) to openclaw_gateway;
