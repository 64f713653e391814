"""Figures for people: a row for each measurement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table


def rows_table(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """A table with a column for each name of the rows, which all have the same ones."""
    made = Table(title=title)
    for column in rows[0]:
        made.add_column(column.replace("_", " "), justify="right")
    for row in rows:
        made.add_row(*map(str, row.values()))
    return made
