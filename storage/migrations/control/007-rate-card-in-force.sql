-- The card and the markup that were last put in force by an audited change (docs/adr/013). The text of the card stands in each
-- home's config.yaml; this is what a process compares its file with.
create table rate_card_in_force (
  only_row    boolean primary key default true check (only_row),
  version     bigint not null default 1,
  hash        text not null references rate_card (hash),
  markup_ppm  bigint not null check (markup_ppm >= 0),
  changed_at  timestamptz not null default now()
);

-- A config.yaml that a gateway is about to write: after a crash between the change and the file, the next start writes it.
create table rate_card_write (
  place       text primary key,  -- the file, as the gateway's machine names it
  hash        text not null references rate_card (hash),
  from_hash   text not null,
  created_at  timestamptz not null default now()
);

-- Up to 1,000,000 times the provider's price, in millionths.
alter table tenant alter column markup_ppm type bigint;
alter table usage_ledger alter column markup_ppm type bigint;

grant select, insert, update on rate_card_in_force to openclaw_gateway;
grant select, insert, update, delete on rate_card_write to openclaw_gateway;
