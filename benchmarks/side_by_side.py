"""A peer and Cleave on one checkpoint in one run: interleaved, with ratios of medians.

A repetition takes fresh random prompts for every batch size, and times both sides one after the other,
in turns first: once until every prompt has its first token, and once more with `--output` tokens after
it. Prefill is batch * prompt tokens over the first time, decode batch * output tokens over the
difference. All tokens are generated greedily through each side's public interface, detokenisation
included where that has it; end-of-sequence tokens are ignored. The machine's limits are measured in every
repetition, with as many threads.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from record import save
from rich.console import Console
from rich.table import Table
from shapes import NAMES, checkpoint

from cleave import LLM, SamplingParams
from cleave.errors import BenchError, CleaveError
from cleave.export.artifact import Artifact
from cleave.kvcache.memory_plan import ITEM_BYTES
from cleave.runtime.bench.counts import ModelShape, total
from cleave.runtime.bench.fit import kv_bytes_for
from cleave.runtime.bench.limits import CpuProbe, Limits
from cleave.runtime.bench.lockstep import decode_steps, prefill_steps
from cleave.runtime.bench.phase import Phase, Run
from cleave.runtime.bench.quiet import OthersWatch
from cleave.runtime.bench.ranges import numbers
from cleave.threads import own_process

Prompts = list[list[int]]


class Contender(Protocol):
    """One side."""

    name: str
    item_bytes: int
    """Bytes of one weight as this side reads it."""

    def generate(self, prompts: Prompts, tokens: int) -> Prompts:
        """`tokens` greedy tokens after every prompt, all prompts in one batch."""

    def close(self) -> None:
        """Give back memory and threads."""


class Cleave:
    """This project, through `LLM.generate`."""

    def __init__(self, artifact: Path, arguments: argparse.Namespace, batch: int) -> None:
        length = arguments.prompt + arguments.output + 1
        self._llm = LLM(
            artifact,
            arguments.engine,
            attention=arguments.attention,
            threads=arguments.threads,
            max_model_len=length,
            max_sequences=batch,
            max_tokens_per_step=max(512, batch * arguments.prompt),
            kv_cache_bytes=kv_bytes_for(
                Artifact.open(artifact), batch, arguments.prompt, arguments.output + 1
            ),
            prefix_cache=False,
            verify=False,
        )
        self.name = f"cleave ({self._llm.model.engine.kind} + {arguments.attention})"
        self.dtype = self._llm.model.engine.dtype
        self.item_bytes = ITEM_BYTES[self.dtype]

    def generate(self, prompts: Prompts, tokens: int) -> Prompts:
        """See `Contender`."""
        answers = self._llm.generate(
            prompts, SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
        )
        return [list(answer.token_ids) for answer in answers]

    def close(self) -> None:
        """See `Contender`."""
        self._llm.close()


MakePeer = Callable[[Path, Path, argparse.Namespace, int], Contender]
"""Called with the checkpoint, a folder for files of its own, the arguments and the largest batch."""


def require(package: str, pin: str) -> None:
    """End with one sentence where the peer is not installed."""
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        sys.stderr.write(f"error: {package} is not installed; the one that was compared: pip install {pin}\n")
        sys.exit(2)


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that all side-by-side scripts share."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument("--shape", choices=NAMES, default="135m")
    options.add_argument("--batch", default="1,8")
    options.add_argument("--prompt", type=int, default=128)
    options.add_argument("--output", type=int, default=64)
    options.add_argument("--repetitions", type=int, default=5)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--engine", default=None)
    options.add_argument("--attention", default="cpu")
    options.add_argument("--name", default=None, help="of the result; default: vs_PEER")
    return options


def main(peer_name: str, make_peer: MakePeer, arguments: argparse.Namespace) -> None:
    """Measure, print the table, write results/vs_PEER.json."""
    own_process()  # as the `cleave` command does
    try:
        figures = side_by_side(make_peer, arguments)
    except CleaveError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    console = Console()
    console.print(table(figures))
    console.print(f"written to {save(arguments.name or f'vs_{peer_name}', figures)}", soft_wrap=True)


def side_by_side(make_peer: MakePeer, arguments: argparse.Namespace) -> dict[str, Any]:
    """The figures of one run. Raises what exporting and loading raise."""
    # Here, since it brings torch: a missing peer is said at once.
    from cleave.export.exporter import ExportRequest, export

    batches = numbers("batch", arguments.batch)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        source = checkpoint(arguments.shape, folder / "checkpoint")
        export(ExportRequest(str(source), folder / "artifact", dtype="float32", check=False))
        artifact = Artifact.open(folder / "artifact", verify=False)
        ours = Cleave(artifact.folder, arguments, batches[-1])
        peer = make_peer(source, folder, arguments, batches[-1])
        sides: tuple[Contender, Contender] = (ours, peer)
        probe = CpuProbe(arguments.threads)
        phases = {
            (side.name, batch): _phases(ModelShape.of(artifact), side, arguments, batch)
            for side in sides
            for batch in batches
        }
        same = total_tokens = 0
        for repetition in range(1 + arguments.repetitions):
            limits = probe.measure()
            for batch in batches:
                generator = np.random.default_rng([repetition, batch])
                shape = (batch, arguments.prompt)
                prompts = generator.integers(0, artifact.manifest.vocab_size, shape).tolist()
                answers = {}
                for side in sides if repetition % 2 else sides[::-1]:
                    answers[side.name], runs = _time(side, prompts, arguments.output, limits)
                    if repetition:
                        for phase, run in zip(phases[side.name, batch], runs, strict=True):
                            if run is not None:
                                phase.runs.append(run)
                found = _same(*answers.values())
                same, total_tokens = same + found[0], total_tokens + found[1]
        probe.close()
        for side in sides:
            side.close()
        return {
            "benchmark": "side_by_side",
            "shape": arguments.shape,
            "prompt": arguments.prompt,
            "output": arguments.output,
            "threads": arguments.threads,
            "repetitions": arguments.repetitions,
            "sides": [side.name for side in sides],
            "weight_item_bytes": [side.item_bytes for side in sides],
            "same_tokens": [same, total_tokens],
            "rows": [_row(phases, sides, batch, index) for index in (0, 1) for batch in batches],
        }


def table(figures: dict[str, Any]) -> Table:
    """Both sides and the ratio of their medians."""
    ours, peer = figures["sides"]
    same, all_tokens = figures["same_tokens"]
    view = Table(
        title=f"{figures['shape']}, prompt {figures['prompt']}, output {figures['output']}, "
        f"{figures['threads']} threads",
        caption=f"tokens/s (% of the limit, for the weights as each side reads them); the same token in "
        f"{same} of {all_tokens} places up to the first that differs; *: other processes used the processor",
    )
    for name in ("phase", "batch", ours, peer, "ratio"):
        view.add_column(name, justify="left" if name == "phase" else "right")
    for row in figures["rows"]:
        cells = [
            f"{side['tokens_per_s']:,.1f} ({side['percent_of_limit']:.0f})"
            + ("*" if side["disturbed"] else "")
            for side in row["sides"]
        ]
        view.add_row(row["phase"], str(row["batch"]), *cells, f"{row['ratio']:.2f}")
    return view


def _phases(
    shape: ModelShape, side: Contender, arguments: argparse.Namespace, batch: int
) -> tuple[Phase, Phase]:
    """The prefill in one step; decoding reads the cache in 4 bytes a value on every side, which flatters none
    by more than its cache."""
    prompt, output = arguments.prompt, arguments.output
    item = {"weight_item": side.item_bytes, "kv_item": 4}
    prefill = total(shape.work(step, batch, **item) for step in prefill_steps(batch, prompt, batch * prompt))
    decode = total(shape.work(step, batch, **item) for step in decode_steps(batch, prompt, output))
    return (
        Phase("prefill", batch, batch * prompt, prefill, "float32"),
        Phase("decode", batch, batch * output, decode, "float32"),
    )


def _time(
    side: Contender, prompts: Prompts, output: int, limits: Limits
) -> tuple[Prompts, tuple[Run, Run | None]]:
    """The answers, the prefill and the decoding; None where someone disturbed the first run more than the
    longer one."""
    with OthersWatch() as watch:
        began = time.perf_counter()
        side.generate(prompts, 1)
        first = time.perf_counter() - began
        answers = side.generate(prompts, 1 + output)
        whole = time.perf_counter() - began - first
    decode = Run((whole - first,), limits, watch.cores) if whole > first else None
    return answers, (Run((first,), limits, watch.cores), decode)


def _same(left: Prompts, right: Prompts) -> tuple[int, int]:
    """Tokens that agree up to the first difference of each answer, and all tokens."""
    agreed = 0
    for ours, theirs in zip(left, right, strict=True):
        pairs = zip(ours, theirs, strict=True)
        agreed += next((index for index, (a, b) in enumerate(pairs) if a != b), len(ours))
    return agreed, sum(map(len, left))


def _row(
    phases: dict[tuple[str, int], tuple[Phase, Phase]], sides: Sequence[Contender], batch: int, index: int
) -> dict[str, Any]:
    found = [phases[side.name, batch][index] for side in sides]
    if not all(phase.runs for phase in found):
        raise BenchError(
            f"no repetition of batch {batch} was left undisturbed enough to tell decoding from the prefill; "
            "raise --output or --repetitions, or end what else runs"
        )
    medians = [statistics.median(sum(run.seconds) for run in phase.runs) for phase in found]
    return {
        "phase": found[0].name,
        "batch": batch,
        "ratio": medians[1] / medians[0],
        "sides": [phase.row() for phase in found],
    }
