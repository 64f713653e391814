"""Server-sent events around JSON, made by hand: they are made once for every token."""

from __future__ import annotations

import json
from json.encoder import encode_basestring as quoted
from typing import Any

__all__ = ["DONE", "Frame", "dump", "quoted"]

DONE = b"data: [DONE]\n\n"


def dump(value: Any) -> str:
    """JSON without spaces, in UTF-8."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


class Frame:
    """The part of a response's events that stays the same."""

    def __init__(self, fields: dict[str, Any], tail: str = "") -> None:
        """Events have `fields`, then "choices" with one choice, then `tail`."""
        self._fields = dump(fields)[:-1]
        self._head = f'data: {self._fields},"choices":[{{"index":'
        self._tail = f"}}]{tail}}}\n\n"

    def choice(self, index: int, rest: str) -> bytes:
        """An event with one choice; `rest` is its JSON after the index."""
        return f"{self._head}{index},{rest}{self._tail}".encode()

    def usage(self, usage: dict[str, Any]) -> bytes:
        """The last event, which has the usage and no choice."""
        return f'data: {self._fields},"choices":[],"usage":{dump(usage)}}}\n\n'.encode()
