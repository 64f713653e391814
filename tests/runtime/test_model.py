"""Loading a model: what is refused late, and what is given back then."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cleave import LLM, SamplingParams
from cleave.errors import AttentionError, CleaveError, EngineError
from cleave.kvcache.server import AttentionServer
from cleave.runtime import model as model_module
from cleave.runtime.engines.onnxruntime import OnnxRuntimeEngine
from cleave.runtime.model import Model
from cleave.runtime.model_options import ModelOptions
from cleave.runtime.structured.compiler import GrammarCompiler


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of what was closed, in order."""
    names: list[str] = []
    for kind, name in (
        (OnnxRuntimeEngine, "close"),
        (AttentionServer, "shutdown"),
        (GrammarCompiler, "close"),
    ):
        close = getattr(kind, name)

        def counted(self: Any, close: Any = close) -> None:
            names.append(type(self).__name__)
            close(self)

        monkeypatch.setattr(kind, name, counted)
    return names


def test_with_fixed_cuts_a_step_has_room_for_a_prompt(
    artifact: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, closed: list[str]
) -> None:
    """On a CPU cuts are free; so this one says that it has another backend."""
    monkeypatch.setattr(model_module, "choose_backend", lambda *_, **__: "reference")
    options = ModelOptions("onnxruntime", deterministic=True, max_tokens_per_step=3)
    with pytest.raises(EngineError, match=r"max_tokens_per_step is 3; with deterministic .* at least 4$"):
        Model(artifact("one_layer"), options)
    assert closed == ["OnnxRuntimeEngine", "GrammarCompiler"]


def test_a_model_that_cannot_be_completed_closes_its_engine(
    artifact: Callable[[str], Path], closed: list[str]
) -> None:
    options = ModelOptions("onnxruntime", page_size=7)
    with pytest.raises(AttentionError, match="page_size is 7"):
        Model(artifact("one_layer"), options)
    assert closed == ["OnnxRuntimeEngine", "GrammarCompiler"]


def test_a_model_that_cannot_warm_up_closes_all_it_has(
    artifact: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, closed: list[str]
) -> None:
    def fail(engine: object) -> Any:
        raise EngineError("the GPU is gone")

    # What asks last for a GPU's engine is the warm-up.
    monkeypatch.setattr(Model, "_pages", lambda self: 4)
    monkeypatch.setattr(model_module, "device_engine", fail)
    with pytest.raises(EngineError, match="the GPU is gone"):
        Model(artifact("one_layer"), ModelOptions("onnxruntime"))
    assert closed == ["AttentionServer", "OnnxRuntimeEngine", "GrammarCompiler"]


def test_a_model_that_is_whole_is_closed_once(artifact: Callable[[str], Path], closed: list[str]) -> None:
    model = Model(artifact("one_layer"), ModelOptions("onnxruntime"))
    assert closed == []
    model.close()
    assert sorted(closed) == ["AttentionServer", "GrammarCompiler", "OnnxRuntimeEngine"]


def test_a_model_whose_thread_cannot_start_is_closed(
    artifact: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, closed: list[str]
) -> None:
    """As where the system allows no more threads."""
    start = threading.Thread.start

    def refused(self: threading.Thread) -> None:
        if self.name == "cleave-engine":
            raise RuntimeError("can't start new thread")
        start(self)

    monkeypatch.setattr(threading.Thread, "start", refused)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        LLM(artifact("one_layer"), "onnxruntime")
    assert sorted(closed) == ["AttentionServer", "GrammarCompiler", "OnnxRuntimeEngine"]


@pytest.mark.parametrize("surprise", [None, TypeError("plan() takes 9 arguments"), ValueError("other pages")])
def test_flashinfer_that_fails_is_replaced_by_triton_where_nobody_asked_for_it(
    artifact: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    surprise: Exception | None,
) -> None:
    """It lacks float32, or the package, and another release of it may raise anything; the log says what."""
    pytest.importorskip("triton")
    monkeypatch.setattr(model_module, "choose_backend", lambda *_, **__: "flashinfer")
    make = AttentionServer.__init__

    def surprised(server: AttentionServer, *given: Any, backend: Any, **options: Any) -> None:
        if surprise is not None and backend == "flashinfer":
            raise surprise
        make(server, *given, backend=backend, **options)

    monkeypatch.setattr(AttentionServer, "__init__", surprised)
    with pytest.raises(CleaveError if surprise is None else type(surprise)) as caught:
        Model(artifact("one_layer"), ModelOptions("onnxruntime", attention="flashinfer"))
    model = Model(artifact("one_layer"), ModelOptions("onnxruntime"))
    assert model.attention_backend == "triton"
    assert "attention is 'triton', since 'flashinfer' cannot be had: " in caplog.text
    assert str(caught.value) in caplog.text
    model.close()


def test_what_stands_beside_an_engine_is_closed_though_the_engine_fails(
    artifact: Callable[[str], Path], closed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model(artifact("one_layer"), ModelOptions())
    monkeypatch.setattr(model.engine, "close", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.close()
    assert closed == ["AttentionServer", "GrammarCompiler"]


def test_an_observer_may_close_the_model_in_the_middle_of_a_step(
    artifact: Callable[[str], Path], closed: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    llm = LLM(artifact("one_layer"))
    before: list[str] = []

    class Closing:
        def stepped(self, step: Any) -> None:
            llm.close()
            before.extend(closed)

        def answered(self, answer: Any) -> None:
            pass

    llm._thread.observe(Closing())
    (answer,) = llm.generate([[3, 5]], SamplingParams(max_tokens=30, ignore_eos=True), progress=False)
    llm._thread._thread.join(60)
    assert answer.finish_reason == "abort"
    assert before == []  # the step goes on to its end over what it needs
    assert closed == ["OnnxRuntimeEngine", "AttentionServer", "GrammarCompiler"]
    assert llm._thread.failure is None
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    llm.close()
