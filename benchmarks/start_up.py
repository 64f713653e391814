"""Start-up of an engine: how long until it runs, and in how much memory.

    python benchmarks/start_up.py model_files/demo-artifact
    python benchmarks/start_up.py --shape 1b --weights int8

The engine `onnxruntime` in several ways, each in a process of its own, interleaved:

- `in turn`: the sessions of the pieces one after the other, ONNX Runtime packing the weights of each;
- `side by side`: the engine as it is, several sessions at a time;
- `saved`: the engine with what `cleave build` saved in the engine cache: pieces that are optimised, and
  their packed weights, which are mapped. ONNX Runtime packs them anew and takes the mapped ones then.

`no packing` is `saved` with packing forbidden: no engine that can be used, because its rows depend on the
number of rows, but what a start would cost if ONNX Runtime took saved packed weights as they are. The last
two begin with the page cache emptied of the model's files, as after a reboot. With `--inductor`: the
engine `inductor` on the CPU with an empty engine cache and with a filled one; torch's own cache is empty
at every start. Packed weights of int4 cannot be saved (docs/quantization.md), so of those there is no
`saved`, and `no packing` is the engine as it is with packing forbidden.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from record import save
from rich.console import Console
from shapes import SHAPES
from workshop import KEPT, Workshop

from cleave.export.artifact import Artifact
from cleave.runtime.engine_cache.cache import EngineCache
from cleave.runtime.engines import onnxruntime as engine_module
from cleave.runtime.engines.builder import get_engine
from cleave.runtime.engines.engine import EngineOptions, create_engine
from cleave.runtime.engines.onnxruntime_builder import OnnxRuntimeBuilder

REAL_OPTIONS = engine_module._options
COLD = ", files not in memory"
WAYS = ("in turn", "side by side", "saved", "no packing", f"side by side{COLD}", f"saved{COLD}")
SAVED = ("saved", "no packing", f"saved{COLD}")
INDUCTOR = ("inductor, empty cache", "inductor, filled cache")
STEPS = (1, 3, 8, 64)
DECODES = 10
MAX_TOKENS = 512


class Echo:
    """An attention server that gives back its queries; what it computes does not matter here."""

    def run(self, layer: int, q: Any, k: Any, v: Any, out: Any) -> None:
        """Write something that depends on the queries."""
        out[:] = q


def memory() -> dict[str, float]:
    """MiB of this process: the peak, what is its own, and what is mapped from files."""
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    names = {"peak": "VmHWM", "own": "RssAnon", "mapped": "RssFile"}
    return {name: int(fields[field].split()[0]) / 1024 for name, field in names.items()}


def save_pieces(artifact: Artifact, cache: EngineCache, options: EngineOptions) -> dict[str, float]:
    """What `cleave build` does; gives back what that costs."""
    began = time.perf_counter()
    with get_engine(OnnxRuntimeBuilder(artifact, options), cache, label="") as built:
        seconds = time.perf_counter() - began
        return {"seconds": seconds, "bytes": sum(path.stat().st_size for path in built.files.values())}


def without_packing(threads: int) -> ort.SessionOptions:
    """A replacement of the engine's `_options`."""
    options = REAL_OPTIONS(threads)
    options.add_session_config_entry("session.disable_prepacking", "1")
    return options


def child(way: str, folder: Path, cache_folder: Path, threads: int) -> dict[str, Any]:
    """Start the engine in this process, and run it."""
    artifact = Artifact.open(folder, verify=False)
    cache = EngineCache(cache_folder)
    kind = "inductor" if way in INDUCTOR else "onnxruntime"
    options = EngineOptions(max_tokens=MAX_TOKENS, threads=threads, device="cpu")
    Path("/proc/self/clear_refs").write_text("5", "utf-8")  # the peak counts from here
    before = memory()
    began = time.perf_counter()
    if way == "in turn":
        engine_module._LOADED_AT_ONCE = 1
    if way == "no packing":
        engine_module._options = without_packing
    engine = create_engine(kind, artifact, options, cache=cache)
    seconds = time.perf_counter() - began
    loaded = memory()
    digest = hashlib.sha256()
    first = time.perf_counter()
    engine.run(np.arange(1), np.arange(1), Echo())
    first = time.perf_counter() - first
    for tokens in STEPS:
        ids = np.random.default_rng(tokens).integers(0, artifact.manifest.vocab_size, tokens)
        digest.update(engine.run(ids, np.arange(tokens), Echo()).tobytes())
    ran = memory()
    decodes = []
    for _ in range(DECODES):
        at = time.perf_counter()
        engine.run(np.arange(1), np.arange(1), Echo())
        decodes.append(time.perf_counter() - at)
    return {
        "load_s": seconds,
        "first_step_ms": first * 1e3,
        "decode_ms": statistics.median(decodes) * 1e3,
        "own_mib": loaded["own"] - before["own"],
        "own_after_steps_mib": ran["own"] - before["own"],
        "mapped_after_steps_mib": ran["mapped"] - before["mapped"],
        "peak_mib": ran["peak"] - before["own"] - before["mapped"],
        "logits": digest.hexdigest(),
    }


def in_a_process(way: str, folder: Path, cache: Path, threads: int) -> dict[str, Any]:
    """The figures of one start."""
    if way.endswith(COLD):
        forget(folder)
        forget(cache)
    command = [
        sys.executable,
        __file__,
        str(folder),
        "--child",
        way.removesuffix(COLD),
        "--cache",
        str(cache),
    ]
    with tempfile.TemporaryDirectory() as compiled:  # else torch's own cache makes an empty one look filled
        environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": compiled}
        command += ["--threads", str(threads)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def forget(folder: Path) -> None:
    """Let the page cache drop the files of a folder."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(folder: Path, *, threads: int, repetitions: int, inductor: bool) -> dict[str, Any]:
    """Medians of every way. Raises AssertionError where one of them computes something else."""
    artifact = Artifact.open(folder)
    starts: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        empty, pieces, compiled = (Path(temporary) / name for name in ("empty", "pieces", "compiled"))
        options = EngineOptions(max_tokens=MAX_TOKENS, threads=threads)
        quantization = artifact.manifest.quantization
        can_save = quantization is None or quantization.method != "int4"
        saved = save_pieces(artifact, EngineCache(pieces), options) if can_save else None
        ways = [way for way in WAYS if can_save or way not in SAVED or way == "no packing"]
        for _ in range(repetitions):
            for way in ways:
                cache = pieces if way in SAVED and can_save else empty
                starts.setdefault(way, []).append(in_a_process(way, folder, cache, threads))
            EngineCache(compiled).gc(0)
            for way in INDUCTOR if inductor else ():
                starts.setdefault(way, []).append(in_a_process(way, folder, compiled, threads))
    kept = [way for way in ways if way != "no packing"]
    assert len({start["logits"] for way in kept for start in starts[way]}) == 1, "logits differ"
    rows = []
    for way, found in starts.items():
        names = [name for name in found[0] if name != "logits"]
        rows.append(
            {"way": way, "same_logits": found[0]["logits"] == starts["in turn"][0]["logits"]}
            | {name: statistics.median(start[name] for start in found) for name in names}
            | {"load_s_all": [start["load_s"] for start in found]}
        )
    weights = artifact.manifest.files["weights.safetensors"].bytes
    return {
        "source": Path(artifact.manifest.source).name,
        "weights_bytes": weights,
        "threads": threads,
        "repetitions": repetitions,
        "quantization": quantization.description if quantization else None,
        "saving_s": saved["seconds"] if saved else None,
        "saved_bytes": saved["bytes"] if saved else None,
        "rows": rows,
    }


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("artifact", nargs="?", type=Path, help="folder of an artifact")
    parser.add_argument("--shape", choices=tuple(SHAPES), default="135m", help="where no artifact is given")
    parser.add_argument("--weights", choices=("float32", "int8", "int4"), default="float32", help="likewise")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--inductor", action="store_true")
    parser.add_argument("--name", default="start_up", help="of the file in results/")
    parser.add_argument("--child", choices=(*WAYS, *INDUCTOR), help=argparse.SUPPRESS)
    parser.add_argument("--cache", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(child(arguments.child, arguments.artifact, arguments.cache, arguments.threads)))
        return
    folder = arguments.artifact or Workshop(KEPT, arguments.shape).artifact(arguments.weights)
    figures = measure(
        folder,
        threads=arguments.threads,
        repetitions=arguments.repetitions,
        inductor=arguments.inductor,
    )
    if arguments.artifact is None:
        figures["source"] = arguments.shape
    console = Console()
    for row in figures["rows"]:
        console.print(
            f"{row['way']:24} {row['load_s']:6.2f} s, peak {row['peak_mib']:6.0f} MiB", highlight=False
        )
    console.print(f"written to {save(arguments.name, {'benchmark': 'start_up'} | figures)}", soft_wrap=True)


if __name__ == "__main__":
    main()
