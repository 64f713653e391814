"""The engine cache as a table."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping

from rich.table import Table
from rich.text import Text

from cleave.runtime.engine_cache.entry import Entry
from cleave.runtime.engine_cache.key import Value, shown

SHORT = 12
"""Digits of a digest in tables; any number that is enough to tell entries apart is taken."""


def table(entries: Iterable[Entry], damages: dict[str, str | None] | None = None) -> Table:
    """Entries, a row each. `damages`: digest -> what a full check found, where one was made."""
    drawn = Table()
    for name in ("engine", "kind", "model", "device", "dtype", "profile"):
        drawn.add_column(name)
    for name in ("bytes", "built", "last used"):
        drawn.add_column(name, justify="right")
    if damages is not None:
        drawn.add_column("files")
    for entry in entries:
        fields = entry.key.fields
        cells = [
            entry.key.digest[:SHORT],
            f"{entry.key.kind} {shown(fields.get('kind_version'))}",
            entry.label,
            shown(fields.get("device")),
            shown(fields.get("dtype")),
            _profile(fields),
            f"{entry.bytes:,}",
            moment(entry.built),
            moment(entry.last_used),
        ]
        if damages is not None:
            cells.append(damages[entry.key.digest] or "intact")
        drawn.add_row(*map(Text, cells))  # brackets are brackets, and no markup
    return drawn


def _profile(fields: Mapping[str, Value]) -> str:
    """For which steps an engine is: by name, or the largest ones."""
    if "max_tokens" in fields:
        return f"up to {fields['max_tokens']} tokens, {fields.get('max_sequences')} sequences"
    match fields.get("profile"):
        case (str(name),):
            return name
        case profile:
            return shown(profile)


def as_json(entries: Iterable[Entry], damages: dict[str, str | None] | None = None) -> str:
    """The same as a JSON list."""
    return json.dumps(
        [
            {
                "digest": entry.key.digest,
                "key": dict(entry.key.fields),
                "model": entry.label,
                "bytes": entry.bytes,
                "built": entry.built,
                "build_seconds": entry.seconds,
                "last_used": entry.last_used,
            }
            | ({} if damages is None else {"damage": damages[entry.key.digest]})
            for entry in entries
        ]
    )


def moment(seconds: float) -> str:
    """A time in this machine's time zone."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
