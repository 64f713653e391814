"""On which GPU steps run: the engine's, whichever is current where they are asked for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cleave import LLM, SamplingParams
from cleave.runtime import loaded as loaded_module
from cleave.runtime.engine_thread import EngineThread
from cleave.runtime.engines.inductor import builder as builder_module
from cleave.runtime.model import Model


class Devices:
    """As torch has it: each thread has a current GPU, the first one until it chooses another."""

    def __init__(self) -> None:
        self._chosen = threading.local()

    def set_device(self, device: torch.device | str | int) -> None:
        self._chosen.device = torch.device(device)

    @property
    def current(self) -> torch.device:
        return getattr(self._chosen, "device", torch.device("cuda:0"))


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> Devices:
    made = Devices()
    monkeypatch.setattr(torch.cuda, "set_device", made.set_device)
    return made


def test_steps_run_on_the_engines_gpu(
    artifact: Callable[[str], Path], devices: Devices, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine of the CPU that says it is on the second GPU, and notes which one is current in its steps."""
    seen: list[tuple[str, torch.device]] = []

    def thread_of(model: Model) -> EngineThread:
        engine: Any = model.engine
        run = engine.run

        def noted(*arguments: Any) -> Any:
            seen.append((threading.current_thread().name, devices.current))
            return run(*arguments)

        engine.device, engine.run = "cuda:1", noted
        return EngineThread(model)

    monkeypatch.setattr(loaded_module, "EngineThread", thread_of)
    devices.set_device("cuda:1")  # as a user does, before the model is loaded
    with LLM(artifact("one_layer"), "onnxruntime") as llm:
        devices.set_device("cuda:0")
        llm.generate([[3, 5, 8]], SamplingParams(max_tokens=3, ignore_eos=True))
    assert seen == [("cleave-engine", torch.device("cuda:1"))] * 3
    assert devices.current == torch.device("cuda:0")


def test_an_engine_of_the_cpu_leaves_the_current_gpu_alone(
    artifact: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: pytest.fail("nobody computes on a GPU"))
    with LLM(artifact("one_layer"), "onnxruntime") as llm:
        (answer,) = llm.generate([[3, 5, 8]], SamplingParams(max_tokens=3, ignore_eos=True))
        assert llm._thread.failure is None
    assert len(answer.token_ids) == 3


def test_a_thread_that_cannot_choose_its_gpu_says_so(
    artifact: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(device: str) -> None:
        raise RuntimeError(f"CUDA error: no {device}")

    def thread_of(model: Model) -> EngineThread:
        model.engine.device = "cuda:1"
        return EngineThread(model)

    monkeypatch.setattr(torch.cuda, "set_device", fail)
    monkeypatch.setattr(loaded_module, "EngineThread", thread_of)
    with LLM(artifact("one_layer"), "onnxruntime") as llm:
        llm._thread._thread.join(60)
        assert llm._thread.failure == "RuntimeError: CUDA error: no cuda:1"


def test_code_that_was_compiled_for_one_gpu_is_not_taken_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inductor writes the number of the GPU into its code, and two GPUs may be alike in all else."""
    pytest.importorskip("triton")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    first, second = (builder_module._device_fields(torch.device("cuda", index)) for index in (0, 1))
    assert first.keys() == second.keys()
    assert {name for name in first if first[name] != second[name]} == {"device_index"}
