"""The engine tensorrt_rtx on a real GPU, with torch in the place of TensorRT's own arithmetic.

Memory, streams, CUDA graphs and attention are real. TensorRT for RTX itself runs on RTX cards only: see
docs/tensorrt_rtx.md for what to run there.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from fake_tensorrt_plans import write_plans
from fake_tensorrt_rtx import Library

from cleave import LLM, SamplingParams
from cleave.export.artifact import Artifact
from cleave.export.exporter import ExportRequest, export
from cleave.runtime.engines.tensorrt_rtx import builder, device, library
from cleave.runtime.engines.tensorrt_rtx import engine as engine_module
from cleave.runtime.engines.tensorrt_rtx.builder import TensorRtRtxBuilder
from cleave.runtime.engines.tensorrt_rtx.engine import TensorRtRtxEngine
from cleave.runtime.engines.tensorrt_rtx.profiles import Profiles

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
]


def test_tokens_on_a_gpu_are_those_of_the_onnxruntime_engine(
    demo_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = Library("cuda")
    export(ExportRequest(str(demo_checkpoint), tmp_path / "artifact", dtype="float32", check=False))
    opened = Artifact.open(tmp_path / "artifact")

    def build(self: TensorRtRtxBuilder, folder: Path, progress: object) -> None:
        write_plans(opened, Profiles(8, 64), folder)

    monkeypatch.setattr(TensorRtRtxBuilder, "build", build)
    for module in (library, builder):
        monkeypatch.setattr(module, "load", lambda: fake, raising=False)
    for module in (device, engine_module):
        monkeypatch.setattr(module, "compute_capability", lambda device: "8.9")
    monkeypatch.setattr("cleave.runtime.engines.kinds._installed", lambda package: True)
    monkeypatch.setenv("CLEAVE_CACHE", str(tmp_path / "cache"))
    known = json.loads((demo_checkpoint / "known_answers.json").read_text("utf-8"))
    prompts = [answer["prompt"] for answer in known if "prompt" in answer][:8]
    params = SamplingParams(max_tokens=24, ignore_eos=True)
    answers = {}
    for kind in ("onnxruntime", "tensorrt_rtx"):
        with LLM(
            opened.folder, kind, verify=False, max_model_len=128, max_tokens_per_step=64, max_sequences=8
        ) as llm:
            answers[kind] = [completion.token_ids for completion in llm.generate(prompts, params)]
            engine = llm.model.engine
            if isinstance(engine, TensorRtRtxEngine):
                captured = {size for size, _ in engine._graphs._captured}
                runs = len(fake.state.runs)
                llm.generate(prompts, params)
                replayed = len(fake.state.runs) - runs
    assert answers["tensorrt_rtx"] == answers["onnxruntime"]
    assert captured == set(Profiles(8, 64).buckets)
    # Only prefill is launched piece by piece: decode steps are replays, which the library does not see.
    assert replayed < 6 * (opened.manifest.num_layers + 1)
