"""Reads lines of JSON, each an event or a response, and tells what the published schema says against them."""

import json
import sys

import openresponses_types.types as published
from pydantic import BaseModel, ValidationError


def without_format_schema(given: dict) -> dict:
    """The published types have a fault: a format's own schema can only be null. Here it has to be an object."""
    response = given.get("response", given)
    form = response.get("text", {}).get("format", {}) if isinstance(response.get("text"), dict) else {}
    if form.get("type") == "json_schema":
        assert isinstance(form["schema"], dict)
        form["schema"] = None
    return given


def type_of(model: type[BaseModel]) -> str:
    return next(iter(model.model_fields["type"].annotation)).value


EVENTS = {
    type_of(model): model
    for name, model in vars(published).items()
    if isinstance(model, type) and issubclass(model, BaseModel) and name.endswith("StreamingEvent")
}

checked = 0
for line in sys.stdin:
    given = json.loads(line)
    model = published.ResponseResource if given.get("object") == "response" else EVENTS.get(given.get("type"))
    if model is None:
        print(f"unknown: {line[:200]}")
        continue
    try:
        model.model_validate(without_format_schema(given))
        checked += 1
    except ValidationError as error:
        print(f"{given.get('type', 'response')}: {error}")
print(f"checked {checked}")
