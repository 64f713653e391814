"""Finds the calls of tools in what a model says."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

_OPEN = "<tool_call>"
_CLOSE = "</tool_call>"


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call."""

    index: int
    name: str
    arguments: str
    """JSON text."""

    def described(self, request_id: str) -> dict[str, Any]:
        """The call as OpenAI's API has it."""
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": f"call_{request_id}_{self.index}", "type": "function", "function": function}


@dataclass(frozen=True, slots=True)
class Parsed:
    """What is certain of an answer: text for the reader, and calls."""

    content: str = ""
    calls: tuple[ToolCall, ...] = ()

    def __add__(self, later: Parsed) -> Parsed:
        """Both, one after the other."""
        return Parsed(self.content + later.content, self.calls + later.calls)


class ToolParser:
    """Reads one answer piece by piece. Two forms are known: `<tool_call>{...}</tool_call>`, as often as one
    likes (Hermes, Qwen), and an answer that is nothing but the JSON object of a call (Llama 3, and every
    call that is demanded). What turns out to be no call stays text.
    """

    def __init__(self, names: Collection[str]) -> None:
        """`names` of the tools that may be called."""
        self._names = names
        self._text = ""
        self._begun = False
        self._is_object = False
        self.calls = 0

    def push(self, text: str) -> Parsed:
        """Take more text; gives back what is certain now."""
        self._text += text
        if not self._begun:
            if not self._text.strip():
                return Parsed()
            self._begun, self._is_object = True, self._text.lstrip().startswith("{")
        return Parsed() if self._is_object else self._marked()

    def finish(self) -> Parsed:
        """What was still waiting at the end."""
        rest, self._text = self._text, ""
        # Some models stop instead of closing the last call.
        written = rest if self._is_object else rest.removeprefix(_OPEN)
        if self._is_object or written != rest:
            call = self._call(written)
            if call is not None:
                return Parsed(calls=(call,))
        return Parsed(content=rest)

    def _marked(self) -> Parsed:
        found = Parsed()
        while True:
            before, opened, rest = self._text.partition(_OPEN)
            if not opened:
                kept = _beginning_of(_OPEN, self._text)
                certain = self._text[: len(self._text) - kept]
                self._text = self._text[len(certain) :]
                return found + Parsed(content=certain)
            found += Parsed(content=before)
            written, closed, after = rest.partition(_CLOSE)
            if not closed:
                self._text = _OPEN + rest
                return found
            call = self._call(written)
            found += Parsed(content=_OPEN + written + _CLOSE) if call is None else Parsed(calls=(call,))
            self._text = after

    def _call(self, written: str) -> ToolCall | None:
        try:
            value = json.loads(written)
        except (ValueError, RecursionError):
            return None
        if not isinstance(value, dict) or value.get("name") not in self._names:
            return None
        arguments = value.get("arguments", value.get("parameters", {}))
        if not isinstance(arguments, dict):
            return None
        self.calls += 1
        return ToolCall(self.calls - 1, value["name"], json.dumps(arguments, ensure_ascii=False))


def _beginning_of(mark: str, text: str) -> int:
    """How many characters at the end of a text may be the beginning of a mark."""
    for length in range(min(len(mark) - 1, len(text)), 0, -1):
        if mark.startswith(text[-length:]):
            return length
    return 0
