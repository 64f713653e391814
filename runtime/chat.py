"""Chat templates: the checkpoint's own, rendered in a sandbox as transformers renders them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from cleave.errors import ArtifactError, RequestError, reason
from cleave.export.artifact import Artifact

Message = Mapping[str, Any]
"""{"role": "system" | "user" | "assistant" | ..., "content": text, or a list of {"type": "text", "text"}}."""


class ChatTemplate:
    """Turns a conversation into the text that the model was trained on."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """`special_tokens` are the names that templates use: bos_token, eos_token, ...

        Raises ArtifactError where the template cannot be compiled.
        """
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _refuse
        environment.globals["namespace"] = _Namespace
        environment.globals["strftime_now"] = _strftime_now
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise ArtifactError(f"the chat template cannot be compiled: {reason(error)}") from None
        self._special_tokens = dict(special_tokens)

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> str:
        """The conversation as text, up to where the model's answer begins.

        `options` are variables for the template, such as `enable_thinking`. Raises RequestError for
        messages that are not messages, or that the template refuses.
        """
        variables: dict[str, Any] = {
            **self._special_tokens,
            "add_generation_prompt": True,
            **(options or {}),
            "messages": [_plain(index, message) for index, message in enumerate(_listed(messages))],
            "tools": list(tools) if tools else None,
            "documents": None,
        }
        try:
            return self._template.render(variables)
        # A template is a program of the checkpoint's, and fails in as many ways.
        except Exception as error:
            raise RequestError(f"the chat template refuses the messages: {reason(error)}") from None


class Chat:
    """The chat templates of an artifact, compiled when they are first needed."""

    def __init__(self, artifact: Artifact) -> None:
        config = artifact.tokenizer_config
        given: Any = config.get("chat_template")
        if artifact.chat_template_file is not None:
            given = artifact.chat_template_file
        # Some configs name several, of which "tool_use" is the one for tools.
        named = {entry["name"]: entry["template"] for entry in given} if isinstance(given, list) else {}
        self._plain: str | None = named.get("default") if named else given
        self._with_tools: str | None = named.get("tool_use", self._plain)
        self._special_tokens = special_tokens(config)
        self._compiled: dict[str, ChatTemplate] = {}

    @property
    def has_template(self) -> bool:
        """Whether the checkpoint can chat."""
        return self._plain is not None

    @property
    def takes_tools(self) -> bool:
        """Whether the template does anything with tools; the others would drop them in silence."""
        return self._with_tools is not None and "tools" in self._with_tools

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> str:
        """See `ChatTemplate.render`. Raises RequestError also where there is no template for it."""
        source = self._with_tools if tools else self._plain
        if source is None:
            raise RequestError(
                "the checkpoint has no chat template; give it a text to continue instead of messages"
            )
        if tools and not self.takes_tools:
            raise RequestError("the checkpoint's chat template knows no tools; leave them out")
        if source not in self._compiled:
            self._compiled[source] = ChatTemplate(source, self._special_tokens)
        return self._compiled[source].render(messages, tools, options)


def special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """bos_token, eos_token and the like of a tokenizer_config.json, as text."""
    found = {}
    for name, value in config.items():
        text = value.get("content") if isinstance(value, Mapping) else value
        if name.endswith("_token") and isinstance(text, str):
            found[name] = text
    return found


def _listed(messages: object) -> Sequence[Message]:
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise RequestError(
            f'messages is {type(messages).__name__}; give a list of {{"role": ..., "content": ...}}'
        )
    if not messages:
        raise RequestError("messages is empty; give at least one message")
    return messages


def _plain(index: int, message: object) -> dict[str, Any]:
    """A message with its content as one text, which is what templates of text models expect."""
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise RequestError(f'message {index} is {message!r}; it needs a "role" and a "content"')
    content = message.get("content")
    if content is None and message.get("tool_calls"):
        return dict(message)
    if isinstance(content, Sequence) and not isinstance(content, str | bytes):
        content = "".join(_text_of(index, part) for part in content)
    if not isinstance(content, str):
        raise RequestError(f"the content of message {index} is {content!r}; it must be text")
    return {**message, "content": content}


def _text_of(index: int, part: object) -> str:
    if isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    raise RequestError(f'message {index} has a part of type {kind!r}; only "text" is supported')


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is; jinja2's own filter escapes what HTML must not hold."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


class _Generation(Extension):
    """`{% generation %}` marks the assistant's words for training; here it changes nothing."""

    tags = {"generation"}  # noqa: RUF012 (so declared by jinja2)

    def parse(self, parser: Parser) -> nodes.Node:
        """The body of the block alone."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _Namespace(Namespace):
    """jinja2's `namespace`, but for names that lead into Python's internals."""

    def __init__(self, /, *arguments: Any, **attributes: Any) -> None:
        given = dict(*arguments, **attributes)
        for name in given:
            _check_name(name)
        super().__init__(given)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: str) -> None:
    if name.startswith("_"):
        raise SecurityError(f"a chat template may not set {name!r}, which begins with an underscore")
