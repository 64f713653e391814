"""The ONNX parser of TensorRT for RTX finds the creator, and gives each plugin the fields of its layer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command import REPOSITORY

from cleave.errors import EngineError
from cleave.export.artifact import Artifact
from cleave.kvcache.spec import AttentionSpec
from cleave.plugins.schema import is_cut
from cleave.plugins.tensorrt.graph import with_fields

pytest.importorskip("tensorrt_rtx_libs", reason="TensorRT for RTX has no wheel for this machine")


def parsed(folder: Path) -> dict[str, dict[str, Any]]:
    """What the parser did with each graph of an artifact."""
    program = REPOSITORY / "tests" / "support" / "parse_plugins.py"
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    ended = subprocess.run(
        [sys.executable, program, folder], env=environment, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0, ended.stderr
    told: dict[str, dict[str, Any]] = {}
    graph = ""
    for line in ended.stdout.splitlines():
        values = json.loads(line)
        graph = values.get("graph", graph)
        told.setdefault(graph, {}).update(values)
    return told


@pytest.mark.parametrize("variant", ["gqa", "mha"])
def test_the_parser_creates_a_plugin_for_every_layer(variant: str, artifact: Callable[[str], Path]) -> None:
    opened = Artifact.open(artifact(variant))
    told = parsed(opened.folder)
    assert told[""]["is_registered_once"]
    for layer, spec in enumerate(opened.manifest.layer_specs):
        found = told[f"layer {layer}"]
        assert found["fields"] == {
            "layer": layer,
            "heads": spec.heads,
            "kv_heads": spec.kv_heads,
            "head_dim": spec.head_dim,
            "version": 1,
        }
        assert (found["phase"], found["is_building"]) == ("BUILD", True)
        assert found["said"] == "Successfully created plugin: CleaveAttention"
    assert told["whole"]["fields"]["layer"] == 0
    assert told["whole"]["said"] == "Successfully created plugin: CleaveAttention"


def test_a_graph_without_the_fields_is_refused_by_the_creator(artifact: Callable[[str], Path]) -> None:
    told = parsed(artifact("one_layer"))["plain"]
    assert "has no heads, kv_heads, head_dim" in told["error"]
    assert "with_fields" in told["error"]
    assert told["ended"] == 0


def test_the_artifact_itself_stays_as_it_is(artifact: Callable[[str], Path]) -> None:
    opened = Artifact.open(artifact("gqa"))
    plain = opened.batchful_graph()
    before = plain.SerializeToString()
    added = with_fields(plain, opened.manifest.layer_specs)
    assert plain.SerializeToString() == before
    names = {attribute.name for node in added.graph.node if is_cut(node) for attribute in node.attribute}
    assert names == {"layer", "heads", "kv_heads", "head_dim", "plugin_version", "plugin_namespace"}


def test_a_graph_of_another_depth_is_refused(artifact: Callable[[str], Path]) -> None:
    plain = Artifact.open(artifact("gqa")).batchful_graph()
    with pytest.raises(EngineError, match=r"layers \[0, 1, 2\], and the manifest has 2 layers; export"):
        with_fields(plain, [AttentionSpec(4, 2, 16, 0.25)] * 2)
