"""The official client for Python on conversations and background responses: what it says at the end, the test expects."""

import os

import openai

client = openai.OpenAI(base_url=os.environ["OPENCLAW_TEST_URL"], api_key=os.environ["OPENCLAW_TEST_TOKEN"], max_retries=0)
client = client.with_options(default_headers={"X-OpenClaw-Mode": "gateway"})

conversation = client.conversations.create(metadata={"topic": "cats"}, items=[{"role": "system", "content": "Be brief."}])
assert client.conversations.retrieve(conversation.id) == conversation
assert client.conversations.update(conversation.id, metadata={"topic": "dogs"}).metadata == {"topic": "dogs"}

made = client.responses.create(model="sample", input="Hi there", conversation=conversation.id)
assert made.conversation.id == conversation.id
assert made.output_text == "You said: Hi there"
added = client.conversations.items.create(conversation.id, items=[{"role": "user", "content": "And?"}], include=["message.output_text.logprobs"])
items = list(client.conversations.items.list(conversation.id, order="asc", limit=2, include=["message.output_text.logprobs"]))
assert [item.content[0].text for item in items] == ["Be brief.", "Hi there", "You said: Hi there", "And?"]
assert items[2].id == made.output[0].id
assert client.conversations.items.retrieve(added.data[0].id, conversation_id=conversation.id) == items[3]
assert client.conversations.items.delete(items[3].id, conversation_id=conversation.id).id == conversation.id
assert len(client.conversations.items.list(conversation.id).data) == 3
assert client.conversations.delete(conversation.id).deleted
try:
    client.conversations.retrieve(conversation.id)
except openai.NotFoundError as problem:
    assert problem.code == "not_found"
else:
    raise AssertionError("a deleted conversation")

events = list(client.responses.create(model="sample", input="Tell of cats and dogs.", background=True, stream=True))
assert [event.sequence_number for event in events] == list(range(len(events)))
assert list(client.responses.retrieve(events[0].response.id, stream=True)) == events
assert list(client.responses.retrieve(events[0].response.id, stream=True, starting_after=4)) == events[5:]

begun = client.responses.create(model="sample", input="Later.", background=True)
assert client.responses.cancel(begun.id).status in ("cancelled", "completed")
client.responses.delete(begun.id)

print("all is well")
