"""Start-up of the engine `inductor` on a GPU: from the start of the process to the first answer.

    python benchmarks/start_up_gpu.py --shape llama-3-8b

Random weights, in the page cache, through `LLM`. Each start is a process of its own:

- `cold`: nothing was compiled before, and the home folder is empty;
- `warm`: the engine cache and the home folder are those that the cold start has left;
- `new home`: the engine cache is filled, the home folder is empty, as in a container of its own.

Of each the seconds by part (some parts lie within others), and how many of Triton's kernels were compiled.
`--code FOLDER` starts the Cleave of another checkout, in turn with this one: to compare two versions.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import report_gpu
from gpu_shapes import GPU_SHAPES
from needs import require_gpu
from record import save
from rich.console import Console
from rich.table import Table

WAYS = ("cold", "warm", "new home")
INDUCTOR = "cleave.runtime.engines.inductor"
PARTS = {
    "artifact": "cleave.runtime.model:Artifact.open",
    "tokenizer": "cleave.runtime.model:Tokenizer",
    "grammars": "cleave.runtime.model:GrammarCompiler",
    "engine": "cleave.runtime.model:create_engine",
    "pieces translated": f"{INDUCTOR}.functions:Functions.__init__",
    "build": f"{INDUCTOR}.builder:InductorBuilder.build",
    "kernels asked for": f"{INDUCTOR}.choose:Chooser.compile",
    "kernels chosen": f"{INDUCTOR}.choose:Chooser._choose",
    "compiled by Inductor": f"{INDUCTOR}.compiler:standalone_compile",
    "kept by Inductor": f"{INDUCTOR}.compiler:_save",
    "loaded of Inductor": f"{INDUCTOR}.compiler:_load",
    "weights": f"{INDUCTOR}.weights:DeviceWeights.get",
    "kernels restored": "cleave.runtime.kept_kernels:_restored",
    "sampler": "cleave.runtime.model:device_tokens",
    "memory measured": f"{INDUCTOR}.engine:InductorEngine.free_memory",
    "attention server": "cleave.runtime.model:AttentionServer",
    "warm-up": "cleave.runtime.model:warm_up",
    "kernels kept": "cleave.runtime.kept_kernels:_publish",
    "captures": f"{INDUCTOR}.graphs:GraphPool.capture",
}
"""What is timed -> where it is called. What a version does not have is left out."""


class Clock:
    """Seconds by part."""

    def __init__(self, began: float) -> None:
        self.began = began
        self.parts: dict[str, dict[str, float]] = {}

    def now(self) -> float:
        """Since the process was started."""
        return time.time() - self.began

    def note(self, part: str, start: float) -> None:
        """A part that has just ended."""
        entry = self.parts.setdefault(part, {"at": start, "seconds": 0.0, "times": 0})
        entry["seconds"] += self.now() - start
        entry["times"] += 1

    def watch(self, part: str, where: str) -> None:
        """Time every call of what stands in `where`."""
        module, _, path = where.partition(":")
        *owners, name = path.split(".")
        try:
            owner = functools.reduce(getattr, owners, importlib.import_module(module))
            found: Callable[..., Any] = getattr(owner, name)
        except (ImportError, AttributeError):
            return

        @functools.wraps(found, updated=())
        def timed(*arguments: Any, **options: Any) -> Any:
            start = self.now()
            try:
                return found(*arguments, **options)
            finally:
                self.note(part, start)

        setattr(owner, name, timed)


def child(artifact: Path, cache: Path, began: float) -> dict[str, Any]:
    """Start in this process, and answer."""
    clock = Clock(began)
    clock.note("python", 0.0)
    start = clock.now()
    import torch
    import triton

    torch.cuda.init()
    clock.note("torch", start)
    start = clock.now()
    import cleave

    kernels = {True: 0, False: 0}

    def listen(*, cache_hit: bool, **_: Any) -> None:
        kernels[cache_hit] += 1

    triton.knobs.compilation.listener = listen
    for part, where in PARTS.items():
        clock.watch(part, where)
    clock.note("modules", start)
    said: list[str] = []

    def progress(what: str, done: int, total: int) -> None:
        said.append(f"{clock.now():.1f} {what} {done}/{total}")

    llm = cleave.LLM(
        artifact,
        "inductor",
        max_model_len=4096,
        max_sequences=256,
        verify=False,
        cache=cache,
        progress=progress,
    )
    loaded = clock.now()
    params = cleave.SamplingParams(max_tokens=4, ignore_eos=True)
    (answer,) = llm.generate([list(range(3, 40))], params, progress=False)
    seconds = clock.now()
    clock.note("first answer", loaded)
    llm.close()
    clock.note("closed", seconds)
    return {
        "seconds": seconds,
        "answer": list(answer.token_ids),
        "kernels_compiled": kernels[False],
        "kernels_found": kernels[True],
        "parts": clock.parts,
        "progress": said,
    }


def start(artifact: Path, cache: Path, home: Path, code: Path | None) -> dict[str, Any]:
    """The figures of one start."""
    environment = os.environ | {
        "HOME": str(home),
        "XDG_CACHE_HOME": str(home / ".cache"),
        "TORCHINDUCTOR_CACHE_DIR": str(home / "inductor"),
    }
    if code is not None:
        environment["PYTHONPATH"] = str(code)
    began = time.time()
    command = [sys.executable, __file__, "--child", str(artifact), str(cache), repr(began)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    figures = dict(json.loads(done.stdout.splitlines()[-1]))
    ended = time.time() - began
    at = figures["seconds"] + figures["parts"]["closed"]["seconds"]
    figures["parts"]["process ended"] = {"at": at, "seconds": ended - at, "times": 1}
    return figures


def made(shape: str, layers: int | None, folder: Path) -> Path:
    """An artifact with random weights, all of it on the disk: else what a start writes waits for that."""
    from random_artifact import write_graphs, write_random_weights  # transformers, which no start needs

    dtype, config = GPU_SHAPES[shape]
    if layers is not None:
        config = config | {"num_hidden_layers": layers}
    artifact = folder / f"{shape}-{config['num_hidden_layers']}"
    if not artifact.exists():
        write_graphs(dtype, config, artifact)
        write_random_weights(dtype, config, artifact)
    os.sync()
    return artifact


def table(title: str, starts: dict[str, dict[str, Any]]) -> Table:
    """The parts of every start."""
    view = Table("seconds", title=title)
    for way in starts:
        view.add_column(way, justify="right")
    for cells in report_gpu.start_up_rows(starts):
        view.add_row(*cells)
    return view


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=tuple(GPU_SHAPES), default="llama-2-7b")
    parser.add_argument("--layers", type=int, help="of the model, where not all of the shape's")
    parser.add_argument("--folder", type=Path, help="for weights; kept for the next run")
    parser.add_argument("--code", type=Path, help="another checkout, which is started too")
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--name", help="of the result; default: start_up_SHAPE_h200")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        artifact, cache, began = given.child
        print(json.dumps(child(Path(artifact), Path(cache), float(began))))
        return
    require_gpu()
    import torch

    console = Console(width=160)
    codes: dict[str, Path | None] = {"": None} | ({} if given.code is None else {"before: ": given.code})
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        artifact = made(given.shape, given.layers, folder)
        for way in given.ways.split(","):
            for label, code in codes.items():
                base = Path(temporary) / f"code{bool(label):d}"
                home = base / ("new" if way == "new home" else "home")
                home.mkdir(parents=True, exist_ok=True)
                one = found[label + way] = start(artifact, base / "engines", home, code)
                console.print(f"{label}{way}: {one['seconds']:.1f} s, answer {one['answer']}")
                console.print(table(label + way, {way: one}))
    console.print(table(f"{given.shape}, {torch.cuda.get_device_name()}", found))
    figures = {
        "benchmark": "start_up_gpu",
        "gpu": torch.cuda.get_device_name(),
        "shape": given.shape,
        "layers": given.layers or GPU_SHAPES[given.shape][1]["num_hidden_layers"],
        "dtype": GPU_SHAPES[given.shape][0],
        "starts": found,
    }
    console.print(f"written to {save(given.name or f'start_up_{given.shape}_h200', figures)}", soft_wrap=True)


if __name__ == "__main__":
    main()
