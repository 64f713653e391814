"""Tools: what the template is told, what the model is made to say, and what is made of it."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import OpenAI
from served import Served

from cleave.export.exporter import ExportRequest, export
from cleave.runtime.server.openai.tool_parser import Parsed, ToolParser

TEMPLATE = """{%- if tools %}<|system|>{% for tool in tools %}{{ tool.function.name }} {% endfor %}{% endif %}
{%- for message in messages %}<|{{ message.role if message.role != "tool" else "user" }}|>
{%- for call in message.tool_calls or [] %}{{ call.function.arguments.city }}{% endfor %}
{{- message.content or "" }}<|end|>{% endfor %}<|assistant|>"""
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "Rome"]}, "days": {"enum": [1, 2, 3]}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
CLOCK = {
    "type": "function",
    "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}},
}
QUESTION = [{"role": "user", "content": "What is the weather in Paris?"}]


@pytest.fixture(scope="module")
def served(demo_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The demo model with a template that knows tools."""
    checkpoint = tmp_path_factory.mktemp("tools") / "checkpoint"
    shutil.copytree(demo_checkpoint, checkpoint)
    (checkpoint / "chat_template.jinja").write_text(TEMPLATE)
    artifact = tmp_path_factory.mktemp("tools_artifact")
    export(ExportRequest(str(checkpoint), artifact, check=False))
    with Served(artifact, settings={"model_name": "demo"}) as server:
        yield server
        server.idle()


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{served.url}/v1", api_key="unused", max_retries=0) as made:
        yield made


def ask(client: OpenAI, **options: Any) -> Any:
    defaults = {"model": "demo", "messages": QUESTION, "tools": [WEATHER, CLOCK], "max_tokens": 60}
    return client.chat.completions.create(**{**defaults, **options})


def check_call(call: Any) -> None:
    """Assert that it is a call of the weather that keeps the schema."""
    assert call.type == "function"
    assert call.function.name == "weather"
    arguments = json.loads(call.function.arguments)
    assert set(arguments) == {"city", "days"}
    assert arguments["city"] in ("Paris", "Rome")
    assert arguments["days"] in (1, 2, 3)


def test_a_call_that_is_demanded_is_made_and_keeps_its_schema(client: OpenAI) -> None:
    demanded = {"type": "function", "function": {"name": "weather"}}
    (choice,) = ask(client, tool_choice=demanded).choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    (call,) = choice.message.tool_calls
    check_call(call)
    (choice,) = ask(client, tool_choice="required", tools=[WEATHER]).choices
    check_call(choice.message.tool_calls[0])


def test_a_call_is_streamed(client: OpenAI) -> None:
    demanded = {"type": "function", "function": {"name": "weather"}}
    whole = ask(client, tool_choice=demanded).choices[0].message.tool_calls[0].function
    chunks = list(ask(client, tool_choice=demanded, stream=True))
    calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
    assert [(call.index, call.function) for call in calls] == [(0, calls[0].function)]
    assert (calls[0].function.name, calls[0].function.arguments) == (whole.name, whole.arguments)
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == "tool_calls"


def test_the_client_goes_on_with_what_the_tool_said(client: OpenAI) -> None:
    demanded = {"type": "function", "function": {"name": "weather"}}
    message = ask(client, tool_choice=demanded).choices[0].message
    said = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "sunny"}
    (choice,) = ask(client, messages=[*QUESTION, message, said], tool_choice="none").choices
    assert choice.message.tool_calls is None
    assert choice.message.content


def test_the_template_is_told_of_the_tools_unless_there_is_no_choice(client: OpenAI) -> None:
    tokens = {choice: ask(client, tool_choice=choice).usage.prompt_tokens for choice in ("auto", "none")}
    assert tokens["auto"] > tokens["none"] == ask(client, tools=openai.omit).usage.prompt_tokens


def test_what_is_no_call_is_the_answer(client: OpenAI) -> None:
    plain = ask(client, max_tokens=20).choices[0].message
    assert plain.content
    assert plain.tool_calls is None
    pieces = ask(client, max_tokens=20, stream=True)
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == plain.content


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tool_choice": {"type": "function", "function": {"name": "other"}}}, "there are: weather, clock"),
        ({"tools": openai.omit, "tool_choice": "required"}, "tool_choice needs tools"),
        ({"tool_choice": "required", "response_format": {"type": "json_object"}}, "response_format"),
        ({"tools": [{"type": "function", "function": {"name": "no name"}}]}, "tools.0.function.name"),
    ],
)
def test_what_cannot_be_called_is_refused(client: OpenAI, options: dict[str, Any], words: str) -> None:
    with pytest.raises(openai.BadRequestError, match=words):
        ask(client, **options)


def parsed(pieces: list[str]) -> Parsed:
    parser = ToolParser({"weather", "clock"})
    found = Parsed()
    for piece in pieces:
        found += parser.push(piece)
    return found + parser.finish()


CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'


@pytest.mark.parametrize(
    ("text", "content", "names"),
    [
        ("Nothing to call < tool", "Nothing to call < tool", []),
        (CALL, "", ["weather"]),
        (f"I look.\n{CALL}\n{CALL}", "I look.\n\n", ["weather", "weather"]),
        (CALL.removesuffix("</tool_call>"), "", ["weather"]),
        ('{"name": "clock", "parameters": {}}', "", ["clock"]),
        ('{"name": "unknown", "parameters": {}}', '{"name": "unknown", "parameters": {}}', []),
        ('{"name": "clock", "argum', '{"name": "clock", "argum', []),
        ("<tool_call>nonsense</tool_call>!", "<tool_call>nonsense</tool_call>!", []),
        ('<tool_call>{"name": "clock", "arguments": 3}</tool_call>', None, []),
        ("<tool_ca", "<tool_ca", []),
        ("", "", []),
    ],
)
def test_calls_are_found_and_the_rest_is_text_however_it_is_cut(
    text: str, content: str | None, names: list[str]
) -> None:
    generator = random.Random(0)
    for _ in range(50):
        cuts = sorted(generator.choices(range(len(text) + 1), k=4))
        pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        found = parsed(pieces)
        assert found.content == (text if content is None else content)
        assert [call.name for call in found.calls] == names


@given(st.lists(st.text("<tool_call>/{}", max_size=6), max_size=8))
def test_nothing_that_a_model_says_is_lost(pieces: list[str]) -> None:
    assert parsed(pieces) == Parsed("".join(pieces))
