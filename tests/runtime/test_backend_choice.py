"""Which attention backend an engine gets where nobody asks for one, and what is refused."""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any, cast

import fake_flashinfer
import pytest

from cleave.errors import AttentionError
from cleave.kvcache.spec import AttentionSpec, RopeSpec
from cleave.runtime.backend_choice import choose_backend
from cleave.runtime.engines.engine import Engine

torch = pytest.importorskip("torch")
SPEC = AttentionSpec(32, 8, 128, 128**-0.5, RopeSpec("default", 1e4, 64))
GEMMA = (replace(SPEC, window=4096, softcap=50.0), replace(SPEC, softcap=50.0))


@dataclass
class Host:
    """An engine whose tensors are numpy's."""

    kind: str = "onnxruntime"
    device: str = "cpu"
    dtype: str = "float32"


@dataclass
class Gpu:
    """An engine whose tensors are torch's."""

    kind: str = "inductor"
    device: str = "cuda:0"
    dtype: str = "float16"
    launch: Callable[..., Any] = field(default=lambda *_: None)


def chosen(
    engine: Host | Gpu,
    asked: str | None = None,
    specs: tuple[AttentionSpec, ...] = (SPEC,),
    max_position: int = 8192,
    max_tokens: int = 8192,
    **options: Any,
) -> str:
    return choose_backend(asked, cast(Engine, engine), specs, max_position, max_tokens, **options)


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU, FlashInfer and ninja; nothing is compiled."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(fake_flashinfer, "COMPILED", set())
    for name, module in {"flashinfer": fake_flashinfer, **fake_flashinfer.modules()}.items():
        monkeypatch.setitem(sys.modules, name, cast(ModuleType, module))


@pytest.fixture
def compiled(hopper: None) -> None:
    """And the kernels of `SPEC` and `GEMMA` are, in float16."""
    compile_for("float16", (False, False), (True, True), (False, True))


def compile_for(dtype: str, *kinds: tuple[bool, bool]) -> None:
    """As FlashInfer does for layers with a window or without, and with a softcap or without."""
    half = getattr(torch, dtype)
    fake_flashinfer.gen_page_module().build_and_load()
    for window, softcap in kinds:
        of = (torch.int32, 128, 128, 0, window, softcap, False)
        fake_flashinfer.gen_batch_prefill_module("fa3", half, half, half, *of).build_and_load()


def test_an_engine_on_the_host_gets_cpu(compiled: None) -> None:
    assert chosen(Host()) == "cpu"
    assert chosen(Host(), "onnx") == "onnx"
    with pytest.raises(AttentionError, match="cannot read what the engine onnxruntime on cpu hands over"):
        chosen(Host(), "flashinfer")


def test_a_torch_engine_without_a_gpu_gets_reference(compiled: None) -> None:
    assert chosen(Gpu(device="cpu")) == "reference"


def test_without_flashinfer_nothing_is_imported_or_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setitem(sys.modules, "flashinfer", None)
    monkeypatch.setitem(sys.modules, "cleave.kvcache.backends.flashinfer_kernels", None)
    assert chosen(Gpu()) == "triton"
    assert not caplog.records


@pytest.mark.parametrize("specs", [(SPEC,), GEMMA, (SPEC, *GEMMA)])
def test_flashinfer_is_taken_where_its_kernels_are_compiled(
    compiled: None, caplog: pytest.LogCaptureFixture, specs: tuple[AttentionSpec, ...]
) -> None:
    caplog.set_level(logging.INFO)
    assert chosen(Gpu(), specs=specs) == "flashinfer"
    assert chosen(Gpu(), "triton", specs) == "triton"
    assert not caplog.records


@pytest.mark.parametrize(
    ("engine", "specs", "missing"),
    [
        (Gpu(), (replace(SPEC, window=4096),), "1 of its 2 kernels are not compiled"),
        (Gpu(), (SPEC, replace(SPEC, head_dim=64)), "1 of its 3 kernels are not compiled"),
        (Gpu(dtype="bfloat16"), (SPEC,), "1 of its 2 kernels are not compiled"),
    ],
)
def test_where_one_is_not_compiled_it_is_triton_and_why_is_said_once(
    compiled: None,
    caplog: pytest.LogCaptureFixture,
    engine: Gpu,
    specs: tuple[AttentionSpec, ...],
    missing: str,
) -> None:
    caplog.set_level(logging.INFO)
    assert chosen(engine, specs=specs) == "triton"
    (line,) = caplog.messages
    assert f"attention is 'triton', though FlashInfer is installed: {missing}; " in line
    assert "one start with attention 'flashinfer' compiles its kernels for all later ones" in line
    assert chosen(engine, "flashinfer", specs) == "flashinfer"
    assert len(caplog.messages) == 1


def test_the_kernels_of_flashinfer_jit_cache_need_no_ninja(
    hopper: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    compile_for("float16", (False, False))
    assert chosen(Gpu()) == "triton"
    assert "ninja, which it loads" in caplog.text
    monkeypatch.setattr(fake_flashinfer, "SHIPPED", fake_flashinfer.COMPILED)
    assert chosen(Gpu()) == "flashinfer"


@pytest.mark.parametrize(
    ("specs", "max_position"),
    [
        ((SPEC, replace(SPEC, head_dim=80)), 8192),
        ((SPEC, replace(SPEC, window=512)), 8192),  # no row sees keys enough there
        ((SPEC,), 1024),
    ],
)
def test_where_no_step_would_be_faster_it_is_triton(
    compiled: None, caplog: pytest.LogCaptureFixture, specs: tuple[AttentionSpec, ...], max_position: int
) -> None:
    caplog.set_level(logging.INFO)
    assert chosen(Gpu(), specs=specs, max_position=max_position) == "triton"
    assert not caplog.records


def test_where_all_steps_are_small_it_is_triton(compiled: None) -> None:
    assert chosen(Gpu(), max_tokens=512) == "triton"
    assert chosen(Gpu(), max_tokens=513) == "flashinfer"


def test_float32_and_deterministic_are_tritons(compiled: None) -> None:
    assert chosen(Gpu(dtype="float32")) == "triton"
    assert chosen(Gpu(), deterministic=True) == "triton"
    with pytest.raises(
        AttentionError, match=r"'flashinfer' gives a row other bits .*; take attention triton"
    ):
        chosen(Gpu(), "flashinfer", deterministic=True)


@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (10, 0), (12, 0)])
def test_other_gpus_than_hopper_get_triton(
    compiled: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capability: tuple[int, int],
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    assert chosen(Gpu()) == "triton"
    assert not caplog.records


def fewer_arguments(backend: str) -> None:
    raise AssertionError("it is called with more")


@pytest.mark.parametrize(
    ("module", "name", "value"),
    [
        ("flashinfer.jit", "gen_batch_prefill_module", None),
        ("flashinfer.jit", "gen_batch_prefill_module", fewer_arguments),
        ("flashinfer.jit", "gen_batch_prefill_module", lambda *_: object()),
        ("flashinfer.jit.page", "gen_page_module", lambda: object()),
    ],
)
def test_a_flashinfer_that_is_otherwise_is_not_known_to_be_compiled(
    compiled: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    module: str,
    name: str,
    value: Any,
) -> None:
    caplog.set_level(logging.INFO)
    if value is None:
        monkeypatch.delattr(sys.modules[module], name)
    else:
        monkeypatch.setattr(sys.modules[module], name, value)
    assert chosen(Gpu()) == "triton"
    assert "whether its kernels are compiled cannot be found out" in caplog.text
