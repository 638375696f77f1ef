-- The calls of some days without reading the others. Calls are written in the order of time, so a block range is enough: it costs
-- a call next to nothing.
create index on model_call using brin (started_at) with (autosummarize = on);
