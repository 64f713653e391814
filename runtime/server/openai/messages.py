"""Messages as clients send them, made ready for chat templates."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from cleave.runtime.server.openai.schemas import Message


def plain_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The messages as templates expect them: the arguments of calls are objects there, and not JSON text."""
    plain = []
    for message in messages:
        fields = message.model_dump(exclude_none=True)
        fields.setdefault("content", None)
        calls = fields.get("tool_calls")
        if isinstance(calls, Sequence) and not isinstance(calls, str):
            fields["tool_calls"] = [_call(call) for call in calls]
        plain.append(fields)
    return plain


def size_of(messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None) -> int:
    """Roughly the characters of a conversation."""
    if tools:
        return len(str(messages)) + len(str(tools))
    return sum(len(str(message.get("content"))) for message in messages)


def _call(call: Any) -> Any:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"])
    except ValueError:
        return call
    return {**call, "function": {**function, "arguments": arguments}}
