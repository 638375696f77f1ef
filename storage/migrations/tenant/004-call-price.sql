-- What a call was admitted under: an attempt after a crash is billed by it, whatever the rate card says by then (docs/adr/013).
alter table model_call
  add column rate_card_hash text,
  add column markup_ppm bigint;
