-- What counts of a day's tokens under a ceiling is input, output and reasoning, and `tokens_in` has the written cache in it.
alter table usage_daily add column cache_write_tokens bigint not null default 0;
update usage_daily as sum set cache_write_tokens = found.tokens
from (select tenant_id, ("timestamp" at time zone 'UTC')::date as day, model, sum(cache_write_tokens) as tokens
      from usage_ledger where cache_write_tokens > 0 group by 1, 2, 3) as found
where (sum.tenant_id, sum.day, sum.model) = (found.tenant_id, found.day, found.model);

create or replace function add_to_usage_daily() returns trigger language plpgsql security definer set search_path = control, pg_temp as $$
begin
  insert into control.usage_daily as sum (tenant_id, day, model, tokens_in, tokens_out, tokens_cached, reasoning_tokens, tool_calls, cost_nano_usd, calls, cache_write_tokens)
  values (new.tenant_id, (new."timestamp" at time zone 'UTC')::date, new.model, new.input_tokens + new.cache_write_tokens,
          new.output_tokens, new.cache_read_tokens, new.reasoning_tokens, new.tool_calls, new.cost_nano_usd, 1, new.cache_write_tokens)
  on conflict (tenant_id, day, model) do update set
    tokens_in          = sum.tokens_in + excluded.tokens_in,
    tokens_out         = sum.tokens_out + excluded.tokens_out,
    tokens_cached      = sum.tokens_cached + excluded.tokens_cached,
    reasoning_tokens   = sum.reasoning_tokens + excluded.reasoning_tokens,
    tool_calls         = sum.tool_calls + excluded.tool_calls,
    cost_nano_usd      = sum.cost_nano_usd + excluded.cost_nano_usd,
    calls              = sum.calls + 1,
    cache_write_tokens = sum.cache_write_tokens + excluded.cache_write_tokens;
  return null;
end $$;
