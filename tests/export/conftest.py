"""Fixtures of the export's tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from damage import copy_of

from cleave.export import trace


@pytest.fixture
def folder(artifact: Callable[[str], Path], tmp_path: Path) -> Path:
    """An artifact that a test may spoil."""
    return copy_of(artifact("two_layers"), tmp_path / "artifact")


@pytest.fixture
def cached_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trace each model once: what differs here is the order of the parts, and tracing takes seconds."""
    real, traced = trace.MetaModel.trace, {}

    def once(model: trace.MetaModel) -> Any:
        key = (model.config.to_json_string(), str(model.dtype))
        if key not in traced:
            traced[key] = real(model)
        graph, specs = traced[key]
        return graph.clone(), specs

    monkeypatch.setattr(trace.MetaModel, "trace", once)
