"""The scripts of benchmarks/: the report is what the results say, and a missing peer is one sentence."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

REPOSITORY = Path(__file__).parent.parent.parent
PEERS = {
    "vs_llama_cpp": ("llama-cpp-python", "pip install 'llama-cpp-python==0.3.36' 'gguf==0.19.0'"),
    "vs_onnxruntime_genai": ("onnxruntime-genai", "pip install onnxruntime-genai==0.18.0"),
    "vs_vllm": ("vllm", "pip install vllm==0.20.2"),
}


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_docs_benchmarks_is_what_the_generator_makes_of_the_results() -> None:
    report = script("report")
    assert report.REPORT.read_text("utf-8") == report.render(), "run: make report"


def test_a_missing_peer_is_one_sentence_with_its_pinned_install_line() -> None:
    missing = {name: peer for name, peer in PEERS.items() if not _installed(peer[0])}
    started = {
        name: subprocess.Popen(
            [sys.executable, f"benchmarks/{name}.py"], cwd=REPOSITORY, stderr=subprocess.PIPE, text=True
        )
        for name in missing
    }
    for name, (package, line) in missing.items():
        _, said = started[name].communicate()
        assert said == f"error: {package} is not installed; the one that was compared: {line}\n"
        assert started[name].returncode == 2


def _installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
