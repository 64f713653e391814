"""Every engine kind is whole: what the registry names is there, and keeps the protocol it is used by."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cleave.errors import EngineError
from cleave.export.artifact import Artifact
from cleave.runtime.engines.builder import EngineBuilder
from cleave.runtime.engines.engine import EngineOptions, create_engine, engine_builder
from cleave.runtime.engines.kinds import KINDS, EngineKind, engine_kind, engine_kinds

MEMBERS = {name for name in (*EngineBuilder.__annotations__, *vars(EngineBuilder)) if name[0] != "_"}
BUILT = [kind for kind, entry in KINDS.items() if entry.builder is not None]


@pytest.mark.parametrize("kind", BUILT)
def test_a_builder_has_all_that_the_cache_asks_for(kind: str) -> None:
    module, _, name = str(KINDS[kind].builder).partition(":")
    builder = getattr(importlib.import_module(module), name)
    assert {"is_optional", "serves", "build", "table"} < MEMBERS
    # Keys are made with the builder, for one artifact.
    assert not [member for member in MEMBERS - {"key"} if not hasattr(builder, member)]


@pytest.mark.parametrize("kind", engine_kinds())
@pytest.mark.parametrize("device", ["gpu", "tpu:0", "CUDA", ""])
def test_a_name_that_is_no_device_says_which_there_are(kind: str, device: str) -> None:
    with pytest.raises(EngineError, match=f"^device is '{device}'; give cpu or cuda, or leave it away$"):
        engine_kind(kind).check_device(device)


@pytest.mark.parametrize("make", [create_engine, engine_builder])
def test_what_a_kind_cannot_run_is_refused_before_it_is_loaded(
    make: Callable[..., Any], quantized_artifact: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[str] = []
    check = EngineKind.check

    def counted(self: EngineKind, *arguments: Any, **options: Any) -> None:
        checked.append(self.name)
        check(self, *arguments, **options)

    monkeypatch.setattr(EngineKind, "check", counted)
    monkeypatch.setattr(EngineKind, "load", lambda self, place: pytest.fail(f"{place} is loaded"))
    artifact = Artifact.open(quantized_artifact("one_layer", quantize="int8"))
    for kind, options, message in (
        ("onnxruntime", {"device": "cuda"}, "computes on cpu, and not on 'cuda'"),
        ("tensorrt", {"deterministic": True}, "cannot be deterministic"),
        ("inductor", {}, r"is quantised \(int8\), and the engine inductor computes in floats"),
    ):
        with pytest.raises(EngineError, match=message):
            make(kind, artifact, EngineOptions(max_tokens=16, **options))
    assert checked == ["onnxruntime", "tensorrt", "inductor"]
