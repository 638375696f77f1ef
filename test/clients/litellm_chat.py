"""LiteLLM as a client, pointed at the product: what it says at the end, the test expects."""

import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # or it fetches one

import litellm  # noqa: E402

litellm.telemetry = False
target = {"model": "openai/sample", "api_base": os.environ["OPENCLAW_TEST_URL"], "api_key": os.environ["OPENCLAW_TEST_TOKEN"]}
hello = [{"role": "user", "content": "Hi there"}]

whole = litellm.completion(**target, messages=hello)
assert whole.choices[0].message.content == "You said: Hi there"
assert whole.usage.total_tokens == 7

chunks = list(litellm.completion(**target, messages=hello, stream=True, stream_options={"include_usage": True}))
assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "You said: Hi there"
assert litellm.stream_chunk_builder(chunks, messages=hello).usage.total_tokens == 7

tool = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}}
called = litellm.completion(**target, messages=[{"role": "user", "content": "The weather?"}], tools=[tool])
assert called.choices[0].message.tool_calls[0].function.arguments == '{"city":"The weather?"}'

print("all is well")
