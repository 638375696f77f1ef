-- Why the tokens of a row were counted here; null where the provider's count was taken, and in rows from before.
alter table usage_ledger
  add column doubt text check (doubt in ('missing', 'unbelievable', 'contradictory', 'cut')),
  add constraint usage_ledger_doubt_is_estimated check (doubt is null or estimated);
