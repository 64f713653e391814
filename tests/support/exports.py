"""Exports that are refused."""

from __future__ import annotations

from typing import Any

import pytest
from command import assert_one_sentence

from cleave.errors import ExportError
from cleave.export.exporter import ExportRequest, export


def refused(*words: str, **request: Any) -> None:
    """Assert that an export raises one sentence that has these words."""
    with pytest.raises(ExportError) as error:
        export(ExportRequest(**request, check=False))
    assert_one_sentence(str(error.value), "", *words)
