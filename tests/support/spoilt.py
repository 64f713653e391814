"""Reading an artifact that a test has spoilt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command import assert_one_sentence
from damage import edit_json

from cleave import LLM
from cleave.errors import ArtifactError
from cleave.export.artifact import Artifact


def read_all(folder: Path) -> None:
    """Everything that serving reads of an artifact."""
    artifact = Artifact.open(folder)
    artifact.batchful_graph()
    artifact.embedding()
    for pair in artifact.batchless_graphs():
        for path in pair:
            assert path.is_file()
    assert isinstance(artifact.eos_token_ids, frozenset)
    assert isinstance(artifact.generation_config, dict)


def refuse(folder: Path, *words: str) -> str:
    """Assert that reading raises one sentence that has these words, and that no model loads."""
    with pytest.raises(ArtifactError) as refused:
        read_all(folder)
    assert_one_sentence(str(refused.value), "", *words)
    with pytest.raises(ArtifactError):
        LLM(folder)
    return str(refused.value)


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change what stands in manifest.json."""
    edit_json(folder / "manifest.json", change)
