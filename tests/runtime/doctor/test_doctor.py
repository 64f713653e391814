"""`cleave doctor`: verdicts over machines that are made up, and the machine that this is."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command import cleave

from cleave import LLM
from cleave.kvcache.backend import backend_names
from cleave.runtime.doctor import probe as probe_module
from cleave.runtime.doctor.facts import Cache, Facts, Gpu, Package
from cleave.runtime.doctor.probe import parse_gpus, probe
from cleave.runtime.doctor.report import as_dict, as_text
from cleave.runtime.doctor.verdicts import attention_verdicts, engine_verdicts
from cleave.runtime.engines.kinds import engine_kinds

ADA = Gpu("NVIDIA L40S", "8.9", 46068)
HOPPER = Gpu("NVIDIA H200", "9.0", 143771)
OLD = Gpu("Tesla T4", "7.5", 15360)
RTX = "tensorrt-rtx-cu13-bindings"
WORKSTATION = Facts(
    cleave="1.0",
    python="3.12.1",
    system="Linux",
    cpu="a CPU",
    cores=8,
    memory=64 << 30,
    packages={
        name: Package("1.0")
        for name in (
            *("numba", "onnxruntime", "torch", "triton", "flashinfer-python"),
            *(RTX, "tensorrt", "cuda-bindings"),
        )
    },
    missing={"gpu": (), "tensorrt": ("tensorrt",)},
    cache=Cache("/cache", True, 3, 5 << 30),
    driver="580.65.06",
    cuda="13.0",
    torch_cuda="13.0",
    torch_sees_gpu=True,
    gpus=(ADA,),
    rtx_capabilities=("8.6", "8.9", "12.0"),
)


def without(name: str, error: str | None = None) -> Facts:
    """The workstation where a package is not installed, or cannot be imported."""
    found = Package("1.0", error) if error else Package(None)
    return replace(WORKSTATION, packages={**WORKSTATION.packages, name: found})


def told(facts: Facts) -> dict[str, tuple[bool, str]]:
    verdicts = (*engine_verdicts(facts), *attention_verdicts(facts))
    return {verdict.name: (verdict.is_usable, verdict.why) for verdict in verdicts}


def test_every_kind_and_every_backend_has_a_verdict() -> None:
    assert [verdict.name for verdict in engine_verdicts(WORKSTATION)] == list(engine_kinds())
    assert [verdict.name for verdict in attention_verdicts(WORKSTATION)] == list(backend_names())
    assert all(usable for usable, _ in told(replace(WORKSTATION, gpus=(ADA, HOPPER))).values())
    assert told(WORKSTATION)["triton"][1] == "on NVIDIA L40S (compute capability 8.9)"


NO_GPU: dict[str, Any] = {"driver": None, "driver_error": "nvidia-smi is not there", "gpus": ()}


@pytest.mark.parametrize(
    ("facts", "name", "usable", "words"),
    [
        (replace(WORKSTATION, **NO_GPU), "triton", False, "no NVIDIA driver (nvidia-smi is not there)"),
        (
            replace(WORKSTATION, **NO_GPU),
            "inductor",
            True,
            "on the CPU only, with --device cpu: no NVIDIA driver",
        ),
        (replace(WORKSTATION, **NO_GPU), "tensorrt_rtx", False, "builds for compute capability 8.6, 8.9"),
        (replace(WORKSTATION, **NO_GPU), "onnxruntime", True, "on the CPU, with 8 cores"),
        (
            replace(WORKSTATION, arithmetic="float32 in AVX2", huge_pages=True),
            "onnxruntime",
            True,
            "on the CPU, with 8 cores; float32 in AVX2; large weights in huge pages",
        ),
        (replace(WORKSTATION, gpus=()), "triton", False, "driver 580.65.06 sees no GPU"),
        (replace(WORKSTATION, gpus=(OLD,)), "triton", False, "Tesla T4 has compute capability 7.5; 8.0"),
        (replace(WORKSTATION, gpus=(OLD, ADA)), "triton", True, "NVIDIA L40S"),
        (
            replace(WORKSTATION, gpus=(HOPPER,)),
            "tensorrt_rtx",
            False,
            "H200 (9.0); use the engine kind inductor",
        ),
        (replace(WORKSTATION, gpus=(HOPPER, ADA)), "tensorrt_rtx", True, "on NVIDIA L40S"),
        (replace(WORKSTATION, torch_cuda=None), "triton", False, "torch has no CUDA"),
        (replace(WORKSTATION, torch_sees_gpu=False), "triton", False, "CUDA_VISIBLE_DEVICES is not set"),
        (
            replace(WORKSTATION, torch_sees_gpu=False, environment={"CUDA_VISIBLE_DEVICES": "-1"}),
            "inductor",
            True,
            "CUDA_VISIBLE_DEVICES is -1",
        ),
        (without("torch"), "reference", False, "torch is not installed: pip install '.[export]'"),
        (without("torch"), "inductor", False, "pip install '.[gpu]'"),
        (without(RTX), "tensorrt_rtx", False, "not installed: pip install '.[rtx]'"),
        (without("triton", "no libc"), "triton", False, "triton 1.0 cannot be imported: no libc"),
        (without("tensorrt"), "tensorrt", False, "tensorrt is not installed: pip install '.[tensorrt]'"),
        (without("cuda-bindings"), "tensorrt", False, "cuda-bindings is not installed"),
        (replace(WORKSTATION, gpus=(HOPPER,)), "tensorrt", True, "NVIDIA H200 (compute capability 9.0)"),
        (
            without("flashinfer-python"),
            "flashinfer",
            False,
            "flashinfer-python is not installed: pip install '.[flashinfer]'",
        ),
        (replace(WORKSTATION, **NO_GPU), "flashinfer", False, "no NVIDIA driver"),
        (WORKSTATION, "flashinfer", False, "are for compute capability 9.0, and here is NVIDIA L40S"),
        (
            replace(WORKSTATION, gpus=(ADA, HOPPER)),
            "flashinfer",
            True,
            "on NVIDIA H200 (compute capability 9.0)",
        ),
        (without("onnxruntime"), "onnx", False, "onnxruntime is not installed"),
        (without("numba"), "cpu", False, "numba is not installed"),
    ],
)
def test_a_verdict_says_what_is_missing_or_on_what_it_runs(
    facts: Facts, name: str, usable: bool, words: str
) -> None:
    found, why = told(facts)[name]
    assert found is usable
    assert words in why


def test_the_text_has_everything_in_one_paste() -> None:
    text = as_text(replace(WORKSTATION, environment={"CUDA_VISIBLE_DEVICES": "0"}))
    for words in (
        "driver  580.65.06, for CUDA up to 13.0",
        "cuda:0  NVIDIA L40S, compute capability 8.9, 46068 MiB",
        "tensorrt  lacks tensorrt",
        "gpu       installed",
        "holds   3 engines, 5.00 GiB",
        "CUDA_VISIBLE_DEVICES  0",
        *(f"{name} " for name in (*engine_kinds(), *backend_names())),
    ):
        assert words in text
    assert "\x1b" not in text


QUANTIZED = "; onnxruntime + cpu for a quantised artifact"


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (WORKSTATION, "onnxruntime + cpu"),
        (replace(WORKSTATION, best_engine="inductor"), f"inductor + triton{QUANTIZED}"),
        (
            replace(WORKSTATION, best_engine="inductor", gpus=(HOPPER,)),
            "inductor + triton, or flashinfer where it is compiled and the context is long" + QUANTIZED,
        ),
        (without("numba"), "onnxruntime + cpu, which cannot be used; the verdicts on both say why"),
        (
            replace(WORKSTATION, best_engine="inductor", torch_sees_gpu=False),
            "inductor + triton, which cannot be used; the verdicts on both say why",
        ),
    ],
)
def test_the_last_line_says_what_is_taken(facts: Facts, words: str) -> None:
    assert as_text(facts).splitlines()[-1] == f"`cleave serve` takes here: {words}"
    assert as_dict(facts)["taken"] == words


def test_what_is_taken_here_is_what_a_model_gets(demo_artifact: Path) -> None:
    said = as_text(probe()).splitlines()[-1]
    with LLM(demo_artifact, max_sequences=1) as llm:
        engine, backend = llm.model.engine.kind, llm.model.attention_backend
    if backend == "flashinfer":
        assert f"{engine} + triton, or flashinfer" in said
    else:
        assert f"{engine} + {backend}" in said


def test_json_and_text_say_the_same() -> None:
    data = json.loads(json.dumps(as_dict(WORKSTATION)))
    text = as_text(WORKSTATION)
    for verdict in (*data["engines"], *data["attention"]):
        assert verdict["why"] in text
    assert data["gpus"] == [{"name": "NVIDIA L40S", "compute_capability": "8.9", "memory_mib": 46068}]


# What nvidia-smi says.


def test_gpus_are_read() -> None:
    driver, gpus, error = parse_gpus(
        "NVIDIA L40S, 8.9, 46068, 580.65.06\nNVIDIA H200, 9.0, 143771, 580.65.06\n"
    )
    assert (driver, gpus, error) == ("580.65.06", (ADA, HOPPER), None)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo 'NVIDIA L40S, 8.9, 46068, 580.65.06'", None),
        ("echo 'NVIDIA-SMI has failed'; exit 9", "NVIDIA-SMI has failed"),
        ("echo 'something else'", "nvidia-smi says something else"),
        ("echo 'a, [N/A], 1, 2'", "nvidia-smi says"),
        ("true", "lists no GPU"),
    ],
)
def test_a_driver_that_answers_oddly_is_told_of(
    script: str, words: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(probe_module.shutil, "which", lambda name: str(program))
    facts = probe()
    if words is None:
        assert (facts.driver, facts.gpus) == ("580.65.06", (ADA,))
    else:
        assert facts.driver is None
        assert words in (facts.driver_error or "")


# The machine that this is.


def test_this_machine_is_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLEAVE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    ended = cleave("doctor", "--json")
    assert ended.code == 0, ended.err
    data = json.loads(ended.out)
    assert data["python"].startswith(platform.python_version())
    for name in ("numpy", "onnx", "onnxruntime"):
        assert data["packages"][name]["version"] == importlib.metadata.version(name)
    assert data["cache"] == {
        "folder": str(tmp_path / "cache"),
        "is_writable": True,
        "entries": 0,
        "size": 0,
        "error": None,
    }
    assert data["environment"]["CUDA_VISIBLE_DEVICES"] == "0"
    usable = {verdict["name"]: verdict["is_usable"] for verdict in data["engines"]}
    assert usable["onnxruntime"]
    assert cleave("doctor").out.startswith("machine:\n  cleave ")


def test_a_cache_that_is_a_file_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").write_text("")
    monkeypatch.setenv("CLEAVE_CACHE", str(tmp_path / "cache"))
    assert "is a file" in (probe().cache.error or "")


def test_nothing_is_needed_to_be_described(monkeypatch: pytest.MonkeyPatch) -> None:
    """No package, no driver, no metadata of Cleave itself."""

    def gone(name: str) -> Any:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(probe_module.importlib.metadata, "version", gone)
    monkeypatch.setattr(probe_module.importlib.metadata, "requires", gone)
    monkeypatch.setattr(probe_module.shutil, "which", lambda name: None)
    facts = probe()
    assert facts.missing == {}
    assert not any(usable for usable, _ in told(facts).values())
    assert "onnxruntime is not installed" in as_text(facts)


def test_a_package_that_does_not_load_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    load: Callable[..., Any] = probe_module.importlib.import_module

    def fails(name: str, *rest: Any) -> Any:
        if name == "onnxruntime":
            raise OSError("libfoo.so.1: cannot open shared object file")
        return load(name, *rest)

    monkeypatch.setattr(probe_module.importlib, "import_module", fails)
    assert "cannot be imported: libfoo.so.1" in told(probe())["onnxruntime"][1]
