-- Conversations of the Responses API: items in an order. Those of a response are not copied; they count from its turn's row, once
-- that is done, so that no crash loses or doubles one.
create table conversation (
  id          text primary key,  -- conv_<ULID>
  metadata    jsonb not null,
  -- Grows with every change of what it holds: a response is added to the version that it was asked from, or not at all.
  version     bigint not null default 0,
  created_at  timestamptz not null default now()
);

-- A response whose items a conversation holds stays after it was deleted, or was not to be kept: then nobody else finds it.
alter table response add column kept boolean not null default true;

create table conversation_entry (
  conversation_id  text not null references conversation (id) on delete cascade,
  place            bigint not null,  -- the conversation's version before it
  -- An item that was put in, or a response with its input and output.
  item_id          text unique,
  item             jsonb,
  response_id      text unique references response (id) on delete cascade,
  -- Items of the response that were taken out.
  removed          text[] not null default '{}',
  size_bytes       int not null,  -- of the item, or of the response's input
  primary key (conversation_id, place),
  check ((item_id is null) = (item is null) and (item_id is null) <> (response_id is null))
);
