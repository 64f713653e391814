"""The scripts of benchmarks/: the report is what the results say, and a missing peer is one sentence."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import subprocess
import sys
import textwrap
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from command import process
from tokenizers import Tokenizer

from cleave.export.artifact import Artifact

REPOSITORY = Path(__file__).parent.parent.parent
PEERS = {
    "vs_llama_cpp": ("llama-cpp-python", "pip install 'llama-cpp-python==0.3.36' 'gguf==0.19.0'"),
    "vs_onnxruntime_genai": ("onnxruntime-genai", "pip install onnxruntime-genai==0.18.0"),
    "vs_vllm": ("vllm", "pip install vllm==0.20.2"),
    "attention_backends": ("flashinfer-python", "pip install flashinfer-python==0.5.3"),
}


def scripts(monkeypatch: pytest.MonkeyPatch, name: str) -> ModuleType:
    """A script, which finds the others of its folder."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    return importlib.import_module(name)


def test_docs_benchmarks_is_what_the_generator_makes_of_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    report = scripts(monkeypatch, "report")
    assert report.REPORT.read_text("utf-8") == report.render(), "run: make report"
    assert report.README.read_text("utf-8") == report.readme(), "run: make report"


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


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("launch_gpu", []), ("gpu_engine", []), ("start_up_gpu", []), ("vs_vllm", ["--without_vllm"])],
)
def test_without_a_gpu_it_is_one_sentence_and_nothing_is_written(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    arguments: list[str],
) -> None:
    script = scripts(monkeypatch, name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments, "--folder", str(tmp_path / "weights")])
    with pytest.raises(SystemExit) as ended:
        script.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: torch sees no GPU; this measures on a GPU only\n"
    assert not list(tmp_path.iterdir())


def test_a_cold_start_finds_nothing_that_was_compiled_before(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    vs_vllm = scripts(monkeypatch, "vs_vllm")
    monkeypatch.setenv("TRITON_CACHE_DIR", "that of the user")
    caches: dict[str, list[Path]] = {}

    def run(command: list[str], *, env: dict[str, str], **options: Any) -> Any:
        names = ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "VLLM_CACHE_ROOT")
        caches[command[-1]] = [Path(env[name]) for name in names]
        return argparse.Namespace(stdout="what the side prints\n1.5\n")

    monkeypatch.setattr(vs_vllm, "subprocess", argparse.Namespace(run=run, PIPE=None))
    given = argparse.Namespace(shape="llama-2-7b", batch="1")
    for part in ("vllm", "cleave", "warm_start"):
        assert vs_vllm.in_process(part, given, tmp_path / "weights", tmp_path) == 1.5
    assert caches["warm_start"] == caches["cleave"]
    folders = caches["vllm"] + caches["cleave"]
    assert len(set(folders)) == 6
    assert all(tmp_path in folder.parents for folder in folders)


def _installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def side(program: str, weights: str) -> dict[str, Any]:
    return {"program": program, "weights": weights, "item_bytes": 4}


def speeds(phase: str, batch: int, *tokens_per_s: float) -> dict[str, Any]:
    sides = [{"tokens_per_s": speed, "percent_of_bandwidth": speed / 100} for speed in tokens_per_s]
    return {"phase": phase, "batch": batch, "sides": sides}


def test_goals_are_held_against_the_best_of_the_peers_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    goals = scripts(monkeypatch, "goals")
    transformers = {
        "peer": "transformers",
        "shape": "135m",
        "sides": [
            side("Cleave", "int8"),
            side("transformers", "float32"),
            side("transformers", "bfloat16"),
        ],
        "rows": [
            speeds("prefill", 1, 100, 400, 99),
            speeds("decode", 1, 300, 100, 101),
            speeds("decode", 8, 1200, 400, 200),
        ],
    }
    found = {
        (item.against, item.what): (round(item.value, 2), item.is_met) for item in goals.found([transformers])
    }
    assert found == {
        ("transformers float32 or bfloat16", "decode, batch 1"): (2.97, False),
        ("transformers float32 or bfloat16", "decode, batch 8"): (3.0, True),
        ("transformers bfloat16", "prefill, batch 1"): (1.01, True),
        ("its own batch of 1", "decode, batch 8 over batch 1"): (4.0, True),
    }


def test_the_share_of_the_bandwidth_is_a_goal_of_the_large_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    goals = scripts(monkeypatch, "goals")
    sides = [side("Cleave", "float32"), side("onnxruntime-genai", "fp32")]
    result = {"peer": "onnxruntime_genai", "sides": sides, "rows": [speeds("decode", 1, 8010, 8000)]}
    small, large = ({**result, "shape": shape} for shape in ("135m", "1b"))
    assert [item.shape for item in goals.found([small, large]) if item.unit == "%"] == ["1b"]
    (share,) = (item for item in goals.found([large]) if item.unit == "%")
    assert share.value == pytest.approx(80.1)
    assert share.is_met


@pytest.mark.parametrize(
    ("value", "unit", "printed", "is_met"),
    [
        (79.6, "%", "80 %", True),
        (79.4, "%", "79 %", False),
        (1.595, "x", "1.59x", False),
        (1.596, "x", "1.60x", True),
    ],
)
def test_a_goal_is_met_by_the_figure_that_is_printed(
    value: float, unit: str, printed: str, is_met: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    goals, report = scripts(monkeypatch, "goals"), scripts(monkeypatch, "report_cpu")
    at_least = 80.0 if unit == "%" else 1.6
    found = goals.Found("x", "int8", "1b", "decode", value, at_least, unit)
    assert (report._amount(found), found.is_met) == (printed, is_met)


def test_what_was_made_halfway_is_made_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    files = scripts(monkeypatch, "workshop").Workshop(tmp_path, "135m")

    def fail(path: Path) -> None:
        path.write_text("half")
        raise OSError

    with pytest.raises(OSError):
        files.kept("a", fail)
    assert files.kept("a", lambda path: path.write_text("whole")).read_text() == "whole"
    assert files.kept("a", fail).read_text() == "whole"


def test_the_pool_has_the_threads_asked_for_whatever_is_made_first() -> None:
    """Checks of an export have sessions too, which must not decide on the size of the one pool."""
    code = """
        import argparse, sys
        sys.path.insert(0, "benchmarks")
        import side_by_side
        from cleave import use_one_thread_pool
        side_by_side.side_by_side = lambda *arguments: None
        side_by_side.main("x", None, (), argparse.Namespace(threads=3))
        print(use_one_thread_pool())
    """
    ended = process(["-c", textwrap.dedent(code)])
    assert (ended.code, ended.out) == (0, "3\n"), ended.err


def test_the_quality_of_what_is_timed_is_not_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    files = scripts(monkeypatch, "workshop").Workshop(tmp_path, "demo")
    opened = Artifact.open(files.artifact("int8"))
    assert opened.manifest.quantization is not None
    assert opened.manifest.quality == {}


def test_a_pair_is_measured_again_only_by_other_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bench = scripts(monkeypatch, "bench_cpu")
    monkeypatch.setattr(bench, "RESULTS", tmp_path)
    (tmp_path / "vs_a.json").write_text("{}")
    done = bench._Done(tmp_path)
    assert "vs_a" not in done
    done.add("vs_a")
    assert "vs_a" in bench._Done(tmp_path)
    monkeypatch.setattr(bench, "sources", lambda *rooms: "other code")
    assert "vs_a" not in bench._Done(tmp_path)


@pytest.mark.parametrize("weights", ["F32", "F16", "Q8_0", "Q4_0"])
def test_llama_cpp_reads_the_gguf_and_generates_the_demos_answer(
    weights: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """llama.cpp itself says whether the file holds the checkpoint: names, order of q and k, blocks."""
    llama_cpp = pytest.importorskip("llama_cpp")
    pytest.importorskip("gguf")
    if weights.startswith("Q") and b"AMX_INT8 = 1" in llama_cpp.llama_print_system_info():
        pytest.skip("llama.cpp's AMX kernels crash on quantised weights: ggml-org/llama.cpp#20824")
    peer = scripts(monkeypatch, "vs_llama_cpp")
    files = sys.modules["workshop"].Workshop(tmp_path, "demo")
    arguments = argparse.Namespace(prompt=16, output=8, threads=1)
    engine = peer.LlamaCpp(weights, files, arguments, 2)
    tokenizer = Tokenizer.from_file(str(files.checkpoint() / "tokenizer.json"))
    prompt = [0, *tokenizer.encode("The capital of France is", add_special_tokens=False).ids]
    answers = engine.generate([prompt, prompt], 2)
    engine.close()
    assert answers[0] == answers[1]
    assert tokenizer.decode(answers[0]).strip().startswith("Paris")
