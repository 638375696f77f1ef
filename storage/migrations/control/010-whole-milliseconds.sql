-- A row's time has been whole milliseconds from the first: it is given in them (turn-repository.ts), and reports are read from a time on.
alter table usage_ledger add constraint usage_ledger_whole_milliseconds check ("timestamp" = date_trunc('milliseconds', "timestamp", 'UTC'));
