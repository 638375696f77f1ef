"""The official client for Python, pointed at the product: what it says at the end, the test expects."""

import os

import openai
from pydantic import BaseModel

client = openai.OpenAI(base_url=os.environ["OPENCLAW_TEST_URL"], api_key=os.environ["OPENCLAW_TEST_TOKEN"], max_retries=0)
hello = {"model": "sample", "messages": [{"role": "user", "content": "Hi there"}]}


class Person(BaseModel):
    name: str
    age: int


class GetWeather(BaseModel):
    city: str


assert {model.id for model in client.models.list()} >= {"sample", "other-sample"}

whole = client.chat.completions.create(**hello, logprobs=True, top_logprobs=1)
assert whole.choices[0].message.content == "You said: Hi there"
assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens == 7
assert [token.token for token in whole.choices[0].logprobs.content] == ["You", " said:", " Hi", " there"]

raw = client.chat.completions.with_raw_response.create(**hello)
assert raw.headers["x-request-id"].startswith("trn_")

with client.chat.completions.stream(**hello, stream_options={"include_usage": True}) as stream:
    deltas = [event.delta for event in stream if event.type == "content.delta"]
    final = stream.get_final_completion()
assert "".join(deltas) == final.choices[0].message.content == "You said: Hi there"
assert final.usage == raw.parse().usage

person = client.chat.completions.parse(
    model="sample", messages=[{"role": "user", "content": "Jane is 42"}], response_format=Person
)
assert person.choices[0].message.parsed == Person(name="Jane is 42", age=42)

tools = [openai.pydantic_function_tool(GetWeather, name="get_weather")]
called = client.chat.completions.parse(model="sample", messages=[{"role": "user", "content": "The weather?"}], tools=tools)
assert called.choices[0].finish_reason == "tool_calls"
assert called.choices[0].message.tool_calls[0].function.parsed_arguments == GetWeather(city="The weather?")

refused = client.chat.completions.create(model="sample", messages=[{"role": "user", "content": "REFUSE"}])
assert refused.choices[0].message.refusal == "I would rather not."

for field, value, error in [
    ("n", 2, openai.BadRequestError),
    ("store", True, openai.BadRequestError),
    ("model", "nothing", openai.NotFoundError),
]:
    try:
        client.chat.completions.create(**{**hello, field: value})
    except error as problem:
        assert problem.param == field, problem
    else:
        raise AssertionError(field)

try:
    openai.OpenAI(base_url=os.environ["OPENCLAW_TEST_URL"], api_key="tk_acme_0", max_retries=0).chat.completions.create(**hello)
except openai.AuthenticationError as problem:
    assert problem.code == "invalid_api_key"
else:
    raise AssertionError("a wrong token")

print("all is well")
