"""The key of an engine: everything that its build depends on, by name."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any

Value = str | int | bool | tuple["Value", ...]
"""What a field of a key may be."""

ARTIFACT_FIELDS = ("weights", "graph")
"""Fields that say of which artifact an engine is."""
_DIGEST = re.compile(r"[0-9a-f]{40,}")
_DIGEST_SHOWN = 12


@dataclass(frozen=True, eq=False)
class EngineKey:
    """Named fields, of which a digest is made. Never a file name or a time: the same content, the same key.

    Fields that every kind has, where they apply: `kind`, `kind_version` (of the compiler), `graph` and
    `weights` (SHA-256), `plugin_version`, `device` (architecture), `dtype`, `profile`, `flags`. Their
    order is that in which differences are told, and does not matter to the digest.
    """

    fields: Mapping[str, Value]

    def __post_init__(self) -> None:
        """Raises TypeError for a field of another type, ValueError where `kind` is missing."""
        for name, value in self.fields.items():
            _check(name, value)
        if not isinstance(self.fields.get("kind"), str):
            raise ValueError("an engine key needs the field `kind`, a str")
        object.__setattr__(self, "fields", MappingProxyType(dict(self.fields)))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the fields as canonical JSON, in hexadecimal."""
        text = json.dumps(dict(self.fields), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def kind(self) -> str:
        """The engine kind."""
        return str(self.fields["kind"])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, EngineKey) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    @classmethod
    def from_json(cls, fields: Any) -> EngineKey:
        """The key whose fields were written as JSON. Raises TypeError or ValueError for anything else."""
        if not isinstance(fields, dict):
            raise TypeError("the fields of a key are a JSON object")
        return cls({name: _tuples(value) for name, value in fields.items()})

    def differing(self, old: EngineKey) -> tuple[str, ...]:
        """Names of the fields that are not as in `old`, in this key's order."""
        names = (*self.fields, *(name for name in old.fields if name not in self.fields))
        return tuple(name for name in names if not _same(self.fields.get(name), old.fields.get(name)))

    def differences(self, old: EngineKey) -> str:
        """What is not as in `old`, for people: "onnxruntime 1.30.0 -> 1.31.1; threads 2 -> 8"."""
        return "; ".join(
            f"{self._label(name)} {shown(old.fields.get(name))} -> {shown(self.fields.get(name))}"
            for name in self.differing(old)
        )

    def _label(self, name: str) -> str:
        return self.kind if name == "kind_version" else name.replace("_", " ")


def shown(value: Value | None) -> str:
    """A field for people: digests shortened, tuples in brackets, "none" for what is not there."""
    if value is None or value in ((), ""):
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return f"[{', '.join(map(shown, value))}]"
    if isinstance(value, str) and _DIGEST.fullmatch(value):
        return value[:_DIGEST_SHOWN]
    return str(value)


def _same(one: Value | None, other: Value | None) -> bool:
    """Equal as JSON, where 1 and true are not."""
    return json.dumps(one) == json.dumps(other)


def _check(name: str, value: object) -> None:
    if isinstance(value, tuple):
        for item in value:
            _check(name, item)
    elif not isinstance(value, str | int):
        raise TypeError(f"field {name} of an engine key is {value!r}; str, int, bool and tuples are allowed")


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
