-- What is kept of a response beside its turn, whose row holds the answer: the identity is the turn's.
create table response (
  id           text primary key,  -- resp_<ULID of the turn>
  turn_id      text not null unique references turn (id) on delete cascade,
  -- No foreign key: a response stays when the one before it is deleted.
  previous_id  text,
  -- The fields that the answer repeats.
  head         jsonb not null,
  -- The input items, each with its id.
  input        jsonb not null,
  created_at   timestamptz not null default now()
);
