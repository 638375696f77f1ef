-- The ledger summed by session too, so that the dearest sessions of a day or a month are read and not computed; and what of a
-- day's input was written to a cache, which quotas do not count. Run by the owner with search_path = control.

-- Nobody writes a row between the reading of the ledger below and the trigger that takes over.
lock table usage_ledger in share row exclusive mode;

alter table usage_daily add column cache_write_tokens bigint not null default 0;
update usage_daily kept set cache_write_tokens = summed.tokens
from (select tenant_id, ("timestamp" at time zone 'UTC')::date as day, model, sum(cache_write_tokens) as tokens
      from usage_ledger where cache_write_tokens > 0 group by 1, 2, 3) summed
where (kept.tenant_id, kept.day, kept.model) = (summed.tenant_id, summed.day, summed.model);

-- By UTC day and by UTC month of admission.
create table usage_session (
  tenant_id      text not null,
  span           text not null check (span in ('day', 'month')),
  starts         date not null,
  session_id     text collate "C" not null,
  calls          bigint not null,
  cost_nano_usd  bigint not null
);
insert into usage_session
select tenant_id, span, date_trunc(span, "timestamp" at time zone 'UTC')::date, session_id, count(*), sum(cost_nano_usd)
from usage_ledger, (values ('day'), ('month')) spans (span) group by 1, 2, 3, 4;
alter table usage_session add primary key (tenant_id, span, starts, session_id);
create index usage_session_dearest on usage_session (tenant_id, span, starts, cost_nano_usd desc, session_id);
analyze usage_session;

grant select on usage_session to openclaw_gateway, openclaw_tenant;
alter table usage_session enable row level security;
create policy own_rows on usage_session to openclaw_tenant using (tenant_id = control.current_tenant()) with check (tenant_id = control.current_tenant());
create policy every_row on usage_session to openclaw_gateway using (true) with check (true);

-- Takes the place of add_to_usage_daily, with the same rights and for the same reasons. Every writer takes the rows in this order.
create function add_to_usage_sums() returns trigger language plpgsql security definer set search_path = control, pg_temp as $$
declare
  admitted_on date := (new."timestamp" at time zone 'UTC')::date;
begin
  insert into control.usage_daily as sum (tenant_id, day, model, tokens_in, tokens_out, tokens_cached, reasoning_tokens, tool_calls, cost_nano_usd,
    calls, cache_write_tokens)
  values (new.tenant_id, admitted_on, new.model, new.input_tokens + new.cache_write_tokens, new.output_tokens, new.cache_read_tokens, new.reasoning_tokens,
          new.tool_calls, new.cost_nano_usd, 1, new.cache_write_tokens)
  on conflict (tenant_id, day, model) do update set
    tokens_in          = sum.tokens_in + excluded.tokens_in,
    tokens_out         = sum.tokens_out + excluded.tokens_out,
    tokens_cached      = sum.tokens_cached + excluded.tokens_cached,
    reasoning_tokens   = sum.reasoning_tokens + excluded.reasoning_tokens,
    tool_calls         = sum.tool_calls + excluded.tool_calls,
    cost_nano_usd      = sum.cost_nano_usd + excluded.cost_nano_usd,
    calls              = sum.calls + 1,
    cache_write_tokens = sum.cache_write_tokens + excluded.cache_write_tokens;
  insert into control.usage_session as sum
  values (new.tenant_id, 'day', admitted_on, new.session_id, 1, new.cost_nano_usd),
         (new.tenant_id, 'month', date_trunc('month', admitted_on::timestamp)::date, new.session_id, 1, new.cost_nano_usd)
  on conflict (tenant_id, span, starts, session_id) do update set
    calls         = sum.calls + 1,
    cost_nano_usd = sum.cost_nano_usd + excluded.cost_nano_usd;
  return null;
end $$;
revoke execute on function add_to_usage_sums() from public;

drop trigger usage_daily_sum on usage_ledger;
drop function add_to_usage_daily();
create trigger usage_sums after insert on usage_ledger for each row execute function add_to_usage_sums();
