"""What text a request may get: JSON of a schema, a regular expression, one of several choices, a grammar."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cleave.errors import RequestError, reason
from cleave.runtime.structured.schema import check_embedded_schemas, check_schema

Kind = Literal["json_schema", "json_object", "regex", "choice", "grammar"]

MAX_SCHEMA_BYTES = 256 * 1024
"""Longest JSON schema, and longest list of choices, in UTF-8."""
MAX_GRAMMAR_BYTES = 64 * 1024
"""Longest regular expression and longest grammar, in UTF-8."""
_KINDS: tuple[Kind, ...] = ("json_schema", "json_object", "regex", "choice", "grammar")
_ANY_OBJECT = '{"type":"object"}'


@dataclass(frozen=True, slots=True)
class StructuredOutput:
    """What the whole answer has to be. Give exactly one of the five kinds.

    >>> SamplingParams(structured=StructuredOutput(choice=["yes", "no"]))
    """

    json_schema: Mapping[str, Any] | bool | str | None = None
    """A JSON schema, as a dict, as `True` for any JSON value, or as JSON text; kept as JSON text. What of
    JSON Schema is supported is in docs/structured.md; what is not is refused by name."""
    json_object: bool = False
    """Any JSON object."""
    regex: str | None = None
    """A regular expression that the whole answer matches, in the syntax of Rust's `regex` crate: no
    look-around and no back references."""
    choice: Sequence[str] | None = None
    """The answer is one of these; kept as a tuple."""
    grammar: str | None = None
    """A context-free grammar in llguidance's dialect of Lark, beginning with the rule `start`."""
    disable_any_whitespace: bool = False
    """JSON without whitespace between its parts. Otherwise the model may put up to 16
    spaces or line ends wherever JSON allows them."""

    def __post_init__(self) -> None:
        """Raises RequestError for values that are not allowed, and for a schema that is not supported."""
        for name in ("json_object", "disable_any_whitespace"):
            if not isinstance(getattr(self, name), bool):
                raise RequestError(f"{name} is {getattr(self, name)!r}; it must be True or False")
        given = self._given()
        if len(given) != 1:
            raise RequestError(
                f"structured output is given {' and '.join(given) or 'nothing'}; give exactly one of "
                f"{', '.join(_KINDS)}"
            )
        if self.disable_any_whitespace and self.kind not in ("json_schema", "json_object"):
            raise RequestError(
                f"disable_any_whitespace is for json_schema and json_object, and not for {self.kind}"
            )
        if self.kind == "json_schema":
            object.__setattr__(self, "json_schema", _schema_text(self.json_schema))
        elif self.kind == "choice":
            object.__setattr__(self, "choice", _choices(self.choice))
        elif self.kind in ("regex", "grammar"):
            _check_text(self.kind, getattr(self, self.kind), MAX_GRAMMAR_BYTES)
        if self.grammar is not None:
            check_embedded_schemas(self.grammar)

    @property
    def kind(self) -> Kind:
        """Which of the five is given."""
        return self._given()[0]

    @property
    def schema_text(self) -> str:
        """The JSON schema as text, where there is one."""
        return _ANY_OBJECT if self.json_object else str(self.json_schema)

    def _given(self) -> list[Kind]:
        absent = {"json_object": False}
        return [name for name in _KINDS if getattr(self, name) is not absent.get(name)]


def _schema_text(schema: object) -> str:
    """The schema as JSON text, checked."""
    if not isinstance(schema, str):
        if not isinstance(schema, Mapping | bool):
            raise RequestError(
                f"json_schema is of {type(schema).__name__}; it must be a dict, a bool or JSON text"
            )
        try:
            schema = json.dumps(
                dict(schema) if isinstance(schema, Mapping) else schema, ensure_ascii=False, allow_nan=False
            )
        except (TypeError, ValueError, RecursionError) as error:
            raise RequestError(f"json_schema cannot be written as JSON ({reason(error)})") from None
    _check_text("json_schema", schema, MAX_SCHEMA_BYTES)
    try:
        parsed = json.loads(schema, parse_constant=_no_constant, object_pairs_hook=_unique)
    except RecursionError:
        raise RequestError("json_schema is nested too deeply") from None
    except ValueError as error:
        raise RequestError(f"json_schema is not JSON ({reason(error)})") from None
    check_schema(parsed)
    try:
        written = json.dumps(parsed, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise RequestError(f"json_schema has a number that is too large ({reason(error)})") from None
    _check_text("json_schema", written, MAX_SCHEMA_BYTES)
    return written


def _choices(choice: object) -> tuple[str, ...]:
    if isinstance(choice, str | bytes) or not isinstance(choice, Sequence):
        raise RequestError(f"choice is {choice!r:.80}; it must be a list of strings")
    for item in choice:
        if not isinstance(item, str):
            raise RequestError(f"choice has {item!r:.80}; it must be a list of strings")
    if not choice:
        raise RequestError("choice is empty; give at least one string")
    _check_text("choice", "".join(choice), MAX_SCHEMA_BYTES, may_be_empty=True)
    return tuple(dict.fromkeys(choice))


def _check_text(name: str, text: object, most: int, *, may_be_empty: bool = False) -> None:
    if not isinstance(text, str):
        raise RequestError(f"{name} is of {type(text).__name__}; it must be text")
    if not text and not may_be_empty:
        raise RequestError(f"{name} is empty")
    try:
        size = len(text.encode("utf-8"))
    except UnicodeEncodeError:
        raise RequestError(f"{name} has a character that UTF-8 cannot encode") from None
    if size > most:
        raise RequestError(f"{name} has {size} bytes; at most {most} are allowed")


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON value")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    known = dict(pairs)
    if len(known) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice[:40]!r} is there twice in one object")
    return known
