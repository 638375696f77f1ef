-- The W3C traceparent that a turn was handed in under: its steps belong to one trace, whichever process takes them, also after a crash.
-- Null where nothing is traced.
alter table turn add column trace text;
