"""What the engine `inductor` refuses, and what it is chosen for."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cleave.errors import AttentionError, EngineError, MissingPackage
from cleave.export.artifact import Artifact
from cleave.runtime.engines.engine import best_engine_kind
from cleave.runtime.engines.inductor import device as device_module
from cleave.runtime.engines.inductor.device import check_device
from cleave.runtime.engines.inductor.graphs import batch_sizes
from cleave.runtime.engines.inductor.weights import DeviceWeights
from cleave.runtime.model import Model
from cleave.runtime.model_options import ModelOptions

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without an NVIDIA GPU")


@without_gpu
def test_without_a_gpu_the_engine_says_what_to_take(artifact: Callable[[str], Path]) -> None:
    with pytest.raises(EngineError, match="take engine onnxruntime"):
        Model(artifact("one_layer"), ModelOptions(engine="inductor"))


@pytest.mark.parametrize(
    ("name", "message"),
    [("tpu:x", "there is no device 'tpu:x'"), ("mps", "runs on NVIDIA GPUs, and on the CPU; not on 'mps'")],
)
def test_other_devices_are_refused(name: str, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        check_device(name, "float32")


def pretend_gpu(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)


def test_an_old_gpu_is_refused_with_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpu(monkeypatch, (7, 5))
    with pytest.raises(EngineError, match=r"Tesla T4 has compute capability 7\.5; .* needs 8\.0 for bf"):
        check_device("cuda", "bfloat16")


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpu(monkeypatch, (9, 0))
    assert check_device(None, "float16") == torch.device("cuda:0")
    with pytest.raises(EngineError, match="there is no cuda:3; torch sees 1 GPUs"):
        check_device("cuda:3", "float16")


def test_a_gpu_that_is_not_the_current_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpu(monkeypatch, (9, 0))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(EngineError, match=r"cuda:1 is not the current GPU.*CUDA_VISIBLE_DEVICES=1"):
        check_device("cuda:1", "float16")
    assert check_device("cuda:0", "float16") == check_device("cuda", "float16") == torch.device("cuda:0")


def test_a_missing_triton_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpu(monkeypatch, (9, 0))
    monkeypatch.setattr(device_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPackage, match="the engine inductor needs triton"):
        check_device("cuda", "float16")


def test_hidden_gpus_are_spoken_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(EngineError, match=r"no NVIDIA GPU \(CUDA_VISIBLE_DEVICES is ''\)"):
        check_device("cuda", "float16")


def test_what_torch_says_of_an_old_driver_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def init() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040).\n  Update it")

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    message = r"sees no NVIDIA GPU \(The NVIDIA driver .* too old \(found version 11040\)\. Update it\); take"
    with pytest.raises(EngineError, match=message):
        check_device("cuda", "float16")


def test_a_torch_without_cuda_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    message = (
        r"was built without CUDA; install a CUDA build of torch, or take engine onnxruntime, "
        r"or give device cpu \(slow, for tests\)$"
    )
    with pytest.raises(EngineError, match=message):
        check_device("cuda", "float16")
    assert check_device("cpu", "float16").type == "cpu"


def test_weights_that_do_not_fit_say_so(
    artifact: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def empty(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    opened = Artifact.open(artifact("one_layer"))
    weights = DeviceWeights(opened, torch.float32, torch.device("cpu"))
    monkeypatch.setattr(torch, "empty", empty)
    with pytest.raises(
        EngineError, match=r"cpu is full after .* of weights; take a GPU with more memory, exp"
    ):
        weights.get((opened.manifest.embedding,))


@without_gpu
def test_the_best_engine_of_a_cpu_is_chosen_without_torch() -> None:
    assert best_engine_kind() == "onnxruntime"
    code = (
        "import sys; from cleave.runtime.engines.engine import best_engine_kind; "
        "best_engine_kind(); sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("engine", "attention", "message"),
    [
        ("inductor", "cpu", "with that engine there are: reference"),
        ("inductor", "onnx", "what the engine inductor on cpu hands over"),
    ],
)
def test_a_backend_that_cannot_read_the_engines_tensors_is_refused(
    artifact: Callable[[str], Path], engine: str, attention: str, message: str
) -> None:
    with pytest.raises(AttentionError, match=message):
        Model(artifact("one_layer"), ModelOptions(engine=engine, attention=attention, device="cpu"))


@pytest.mark.parametrize(
    ("most", "sizes"),
    [
        (1, (1,)),
        (3, (1, 2, 3)),
        (8, (1, 2, 4, 8)),
        (20, (1, 2, 4, 8, 16, 20)),
        (32, (1, 2, 4, 8, 16, 32)),
        (50, (1, 2, 4, 8, 16, 32, 40, 48, 50)),
    ],
)
def test_batch_sizes_end_with_the_largest_batch(most: int, sizes: tuple[int, ...]) -> None:
    assert batch_sizes(most) == sizes
