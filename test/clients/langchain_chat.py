"""LangChain's standard chat-model tests, pointed at the product, over the API that OPENCLAW_TEST_API names."""

import base64
import os
import types

import httpx
import pytest
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests

RESPONSES = os.environ.get("OPENCLAW_TEST_API") == "responses"

# The tests fetch an image, a document and a sound from the network; these stand for them.
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
)
PDF = b"%PDF-1.1\n1 0 obj<</Type/Catalog>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF\n"
WAV = b"RIFF\x28\x00\x00\x00WAVEfmt \x10\x00\x00\x00\x01\x00\x01\x00\x40\x1f\x00\x00\x80\x3e\x00\x00\x02\x00\x10\x00data\x04\x00\x00\x00\x00\x00\x00\x00"
FILES = {".png": PNG, ".pdf": PDF, ".wav": WAV}


@pytest.fixture(autouse=True)
def local_files(monkeypatch: pytest.MonkeyPatch) -> None:
    def get(url: str, **_: object) -> types.SimpleNamespace:
        return types.SimpleNamespace(content=FILES[url[-4:]])

    monkeypatch.setattr(httpx, "get", get)


@pytest.fixture
def vcr() -> types.SimpleNamespace:
    """Nothing was recorded: the stream of the timed test is run once."""
    return types.SimpleNamespace(responses=[])


class TestStandard(ChatModelIntegrationTests):
    @property
    def chat_model_class(self) -> type[ChatOpenAI]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict:
        return {
            "model": "sample",
            "base_url": os.environ["OPENCLAW_TEST_URL"],
            "api_key": os.environ["OPENCLAW_TEST_TOKEN"],
            "use_responses_api": RESPONSES,
            "stream_usage": True,
            "default_headers": {"X-OpenClaw-Mode": "gateway"},
        }

    @property
    def model_override_value(self) -> str:
        return "other-sample"

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_image_inputs(self) -> bool:
        return True

    @property
    def supports_image_urls(self) -> bool:
        return True

    @property
    def supports_image_tool_message(self) -> bool:
        return True

    @property
    def supports_pdf_inputs(self) -> bool:
        return True

    @property
    def supports_pdf_tool_message(self) -> bool:
        return True

    @property
    def supports_audio_inputs(self) -> bool:
        return True

    @property
    def supports_anthropic_inputs(self) -> bool:
        return True

    @property
    def enable_vcr_tests(self) -> bool:
        return True

    @property
    def supported_usage_metadata_details(self) -> dict:
        details = ["reasoning_output", "cache_read_input"]
        return {"invoke": details, "stream": details}

    def invoke_with_reasoning_output(self, *, stream: bool = False):
        return self.ask({"reasoning_effort": "medium"}, stream)

    def invoke_with_cache_read_input(self, *, stream: bool = False):
        return self.ask({"model_kwargs": {"prompt_cache_key": "k"}}, stream)

    def ask(self, more: dict, stream: bool):
        model = ChatOpenAI(**{**self.chat_model_params, **more})
        if not stream:
            return model.invoke("Say something about cats.")
        full = None
        for chunk in model.stream("Say something about cats."):
            full = chunk if full is None else full + chunk
        return full
