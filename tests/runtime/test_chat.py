"""Chat templates against transformers' own rendering."""

from __future__ import annotations

import datetime
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from cleave import LLM, SamplingParams
from cleave.errors import ArtifactError, RequestError
from cleave.export.artifact import Artifact
from cleave.export.exporter import ExportRequest, export
from cleave.runtime.chat import Chat, ChatTemplate

CONVERSATION = [
    {"role": "system", "content": "Be brief. "},
    {"role": "user", "content": "What is <b>&</b>?\n"},
    {"role": "assistant", "content": "Markup — 东京 🎉"},
    {"role": "user", "content": "And 'quotes'?"},
]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather <now> & here",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]
CALL = [
    {"role": "user", "content": "Weather in Paris?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}}],
    },
    {"role": "tool", "content": "rain"},
]

# Written for this test, each with what templates in the wild do.
TEMPLATES = {
    "roles": (
        "{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>' }}{{ m['content'] | trim }}"
        "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    ),
    "blocks_and_blanks": """
{%- if messages[0].role == 'system' %}
    {%- set system = messages[0].content %}
    {%- set rest = messages[1:] %}
{%- else %}
    {%- set rest = messages %}
{%- endif %}
{% for m in rest %}
  {% if m.role == 'user' %}
[INST] {% if loop.first and system is defined %}<<{{ system }}>> {% endif %}{{ m.content }} [/INST]
  {% else %}
 {{ m.content }}{{ eos_token }}
  {% endif %}
{% endfor %}
""",
    "namespace_and_loop_controls": """
{%- set ns = namespace(last=-1) %}
{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}
{%- for m in messages %}
    {%- if m.role == 'system' %}{%- continue %}{%- endif %}
    {{- m.role ~ ': ' ~ m.content ~ '\\n' }}
    {%- if loop.index0 == ns.last %}{%- break %}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- 'assistant:' }}{%- endif %}
""",
    "generation_blocks": (
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{% set x = m.content %}"
        "{{ x }}{% endgeneration %}\n{% else %}{{ m.content }}\n{% endif %}{% endfor %}"
    ),
    "json_of_all": (
        "{{ messages | tojson }}{{ messages | tojson(indent=2) }}{{ messages[0] | tojson(sort_keys=True) }}"
    ),
    "date": "{{ strftime_now('%Y-%m-%d') }}{% for m in messages %}{{ m.content }}{% endfor %}",
}
WITH_TOOLS = """
{%- if tools %}{% for tool in tools %}{{ tool | tojson }}{% endfor %}{% endif %}
{%- for m in messages %}
    {%- if m.tool_calls %}{% for call in m.tool_calls %}{{ call.function | tojson }}{% endfor %}
    {%- elif m.content is none %}nothing
    {%- else %}{{ m.role }}={{ m.content }};{% endif %}
{%- endfor %}
"""


@pytest.fixture(scope="module")
def transformers_tokenizer(demo_checkpoint: Path) -> Any:
    return AutoTokenizer.from_pretrained(demo_checkpoint)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_renders_as_in_transformers(name: str, transformers_tokenizer: Any) -> None:
    expected = transformers_tokenizer.apply_chat_template(
        CONVERSATION, chat_template=TEMPLATES[name], tokenize=False, add_generation_prompt=True
    )
    ours = ChatTemplate(
        TEMPLATES[name],
        {"bos_token": transformers_tokenizer.bos_token, "eos_token": transformers_tokenizer.eos_token},
    )
    assert ours.render(CONVERSATION) == expected


def test_tools_and_calls_of_them(transformers_tokenizer: Any) -> None:
    expected = transformers_tokenizer.apply_chat_template(
        CALL, tools=TOOLS, chat_template=WITH_TOOLS, tokenize=False, add_generation_prompt=True
    )
    assert ChatTemplate(WITH_TOOLS, {}).render(CALL, TOOLS) == expected


def test_options_reach_the_template(transformers_tokenizer: Any) -> None:
    template = "{% if enable_thinking is defined and not enable_thinking %}quick{% else %}slow{% endif %}"
    ours = ChatTemplate(template, {})
    for options in ({}, {"enable_thinking": False}, {"enable_thinking": True}):
        expected = transformers_tokenizer.apply_chat_template(
            CONVERSATION, chat_template=template, tokenize=False, add_generation_prompt=True, **options
        )
        assert ours.render(CONVERSATION, None, options) == expected


def test_documents_reach_the_template(transformers_tokenizer: Any) -> None:
    template = "{% for document in documents or [] %}{{ document.text }};{% endfor %}{{ messages | length }}"
    documents = [{"title": "a", "text": "Paris"}, {"title": "b", "text": "Rome"}]
    expected = transformers_tokenizer.apply_chat_template(
        CONVERSATION, chat_template=template, tokenize=False, documents=documents
    )
    assert ChatTemplate(template, {}).render(CONVERSATION, None, {"documents": documents}) == expected


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"messages": []}, "messages is no"),
        ({"tools": TOOLS}, "tools is no"),
        ("thinking", "names and values"),
    ],
)
def test_options_that_are_none_are_refused(options: Any, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        ChatTemplate("{{ messages }}", {}).render(CONVERSATION, None, options)


@pytest.mark.parametrize(
    "content", [[{"type": "text", "text": "Be "}, {"type": "text", "text": "brief. "}], "Be brief. "]
)
def test_parts_of_text_are_one_text(content: Any) -> None:
    messages = [{"role": "system", "content": content}, *CONVERSATION[1:]]
    template = ChatTemplate(TEMPLATES["json_of_all"], {})
    assert template.render(messages) == template.render(CONVERSATION)


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([], "at least one message"),
        ("hello", "a list of"),
        ({"role": "user", "content": "x"}, "a list of"),
        ([{"role": "user"}], ["message", "0", "is", "None;", "it", "must", "be", "text"][0]),
        ([{"content": "x"}], '"role"'),
        (["hello"], '"role"'),
        ([{"role": "user", "content": 5}], "must be text"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}], "image_url"),
        ([{"role": "user", "content": ["x"]}], "'str'"),
    ],
)
def test_what_are_no_messages(messages: Any, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        ChatTemplate(TEMPLATES["roles"], {}).render(messages)


def test_a_template_may_refuse() -> None:
    template = ChatTemplate("{{ raise_exception('roles must alternate') }}", {})
    with pytest.raises(RequestError, match="refuses the messages: roles must alternate"):
        template.render(CONVERSATION)


@pytest.mark.parametrize(
    "attack",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{% set x = namespace() %}{% set x.__class__ = 1 %}",
        "{{ namespace(__class__=1) }}",
        "{{ raise_exception.__globals__.keys() }}",
        "{% for i in range(10 ** 9) %}x{% endfor %}",
        "{{ strftime_now.__globals__['json'] }}",
        "{{ cycler.__init__.__globals__.os }}",
    ],
)
def test_a_template_cannot_leave_its_sandbox(attack: str) -> None:
    with pytest.raises(RequestError, match="refuses the messages"):
        ChatTemplate(attack, {}).render(CONVERSATION)


def test_a_template_that_is_no_template() -> None:
    with pytest.raises(ArtifactError, match="cannot be compiled"):
        ChatTemplate("{% for m in messages %}", {})


def test_the_demo_chats_as_in_transformers(demo_artifact: Path, transformers_tokenizer: Any) -> None:
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    encoded = transformers_tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    with LLM(demo_artifact) as llm:
        assert list(llm.chat_prompt(messages)) == list(encoded["input_ids"])
        answers = llm.chat([messages, messages], SamplingParams(max_tokens=40))
        assert {answer.text for answer in answers} == {"The capital of France is Paris."}
        streamed = "".join(chunk.text for chunk in llm.stream_chat(messages))
        assert streamed == answers[0].text


def exported(checkpoint: Path, folder: Path, chat_template: Any) -> Path:
    """The artifact of a checkpoint with another chat template; None for none."""
    copy = folder / "checkpoint"
    shutil.copytree(checkpoint, copy)
    path = copy / "tokenizer_config.json"
    config = json.loads(path.read_text("utf-8")) | {"chat_template": chat_template}
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))
    export(ExportRequest(str(copy), folder / "artifact", check=False))
    return folder / "artifact"


def test_named_templates(demo_checkpoint: Path, tmp_path: Path) -> None:
    templates = [
        {"name": "default", "template": "plain {{ messages[0].content }}"},
        {"name": "tool_use", "template": "{{ tools | length }} tools"},
    ]
    chat = Chat(Artifact.open(exported(demo_checkpoint, tmp_path, templates)))
    assert chat.render(CONVERSATION) == "plain Be brief. "
    assert chat.render(CONVERSATION, TOOLS) == "1 tools"


def test_a_checkpoint_without_a_template(demo_checkpoint: Path, tmp_path: Path) -> None:
    chat = Chat(Artifact.open(exported(demo_checkpoint, tmp_path, None)))
    assert not chat.has_template
    with pytest.raises(RequestError, match="no chat template"):
        chat.render(CONVERSATION)


def test_a_template_that_would_drop_tools_in_silence(demo_artifact: Path) -> None:
    with pytest.raises(RequestError, match="knows no tools"):
        Chat(Artifact.open(demo_artifact)).render(CONVERSATION, TOOLS)


def test_the_date_is_today() -> None:
    text = ChatTemplate(TEMPLATES["date"], {}).render([{"role": "user", "content": ""}])
    assert abs(datetime.date.fromisoformat(text) - datetime.datetime.now().date()).days <= 1
