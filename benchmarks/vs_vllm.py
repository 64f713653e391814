"""Cleave beside vLLM on one GPU: the same random weights, one after the other in one run; or Cleave alone.

Each side loads the shape in a process of its own and generates through its public interface,
`LLM.generate`, greedily, end-of-sequence tokens ignored, the prefix cache off. By batch: the time of one
token after prompts of 512 (prefill), and of 64 more (decode); then 400 requests at once with prompts of
64 to 1024 tokens and outputs of 64 to 512. vLLM does not detokenise, Cleave does. A start is that of the
`LLM`, weights in the page cache. Each side begins with nothing compiled: its own cache is empty, and so are
those of Triton and of Inductor, new folders for each; Cleave starts twice, the second time with what the
first start compiled.

The limit of decode is the bytes of weights and KV over the bandwidth of a copy, that of prefill the
operations over the rate of a large product, both measured first, in the same run.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from gpu_shapes import ENGINES, GPU_SHAPES
from gpu_sizes import Sizes
from needs import require, require_gpu
from record import save
from rich.console import Console
from rich.table import Table

from cleave.export.artifact import Artifact

PIN = "vllm==0.20.2"
SIDES = ("vllm", "cleave")
PARTS = (*SIDES, "limits", "warm_start")
BATCHES = (1, 8, 32, 128, 256)
PROMPT, STEPS = 512, 64
MOST_SEQUENCES = 256
MIXED = 400
LENGTH = 4096

Prompts = Sequence[Sequence[int]]


class Side(Protocol):
    """One of the two."""

    name: str

    def generate(self, prompts: Prompts, outputs: Sequence[int]) -> list[int]:
        """So many greedy tokens after each prompt, all in one call; how many came."""


class Vllm:
    """See `Side`."""

    def __init__(self, folder: Path, dtype: str) -> None:
        import vllm

        self.name = f"vllm {vllm.__version__}"
        self._params = vllm.SamplingParams
        self._llm = vllm.LLM(
            str(folder),
            dtype=dtype,
            skip_tokenizer_init=True,
            gpu_memory_utilization=0.9,
            max_model_len=LENGTH,
            max_num_seqs=MOST_SEQUENCES,
            enable_prefix_caching=False,
            disable_log_stats=True,
        )

    def generate(self, prompts: Prompts, outputs: Sequence[int]) -> list[int]:
        """See `Side`."""
        given = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        params = [
            self._params(temperature=0, max_tokens=count, ignore_eos=True, detokenize=False)
            for count in outputs
        ]
        answers = self._llm.generate(given, params, use_tqdm=False)
        return [len(answer.outputs[0].token_ids) for answer in answers]


class Cleave:
    """See `Side`."""

    def __init__(self, folder: Path, dtype: str) -> None:
        import cleave

        self._params = cleave.SamplingParams
        self._llm = cleave.LLM(
            folder,
            "inductor",
            max_model_len=LENGTH,
            max_sequences=MOST_SEQUENCES,
            prefix_cache=False,
            verify=False,
            cache=folder / ENGINES,
        )
        self.name = f"cleave {importlib.metadata.version('cleave')} (inductor + triton)"

    def generate(self, prompts: Prompts, outputs: Sequence[int]) -> list[int]:
        """See `Side`."""
        params = [self._params(temperature=0, max_tokens=count, ignore_eos=True) for count in outputs]
        return [len(answer.token_ids) for answer in self._llm.generate(prompts, params, progress=False)]


def started(make: Callable[[], Side]) -> tuple[Side, float]:
    """A side, and the seconds of its start."""
    began = time.perf_counter()
    side = make()
    return side, time.perf_counter() - began


def limits(dtype: str) -> dict[str, float]:
    """What the GPU can do at most."""
    from cleave.runtime.bench.gpu_limits import GpuProbe

    probe = GpuProbe("cuda", dtype)
    found = probe.measure()
    probe.close()
    return {"bytes_per_second": found.bandwidth, "flops_per_second": found.rate(dtype)}


def measure(make: Callable[[], Side], vocab: int, batches: Sequence[int]) -> dict[str, Any]:
    """All figures of one side; times are the best of three prefills and of two runs that decode."""
    side, seconds = started(make)
    figures: dict[str, Any] = {"name": side.name, "start_seconds": seconds}
    generator = np.random.default_rng(0)

    def timed(lengths: Sequence[int], outputs: Sequence[int]) -> float:
        prompts = [generator.integers(3, vocab, length).tolist() for length in lengths]
        began = time.perf_counter()
        counts = side.generate(prompts, outputs)
        seconds = time.perf_counter() - began
        if counts != list(outputs):
            raise RuntimeError(f"{side.name} gave {sum(counts)} tokens instead of {sum(outputs)}")
        return seconds

    timed([PROMPT] * 4, [8] * 4)
    figures["batches"] = []
    for batch in batches:
        timed([PROMPT] * batch, [2] * batch)
        first = min(timed([PROMPT] * batch, [1] * batch) for _ in range(3))
        whole = min(timed([PROMPT] * batch, [1 + STEPS] * batch) for _ in range(2))
        step = (whole - first) / STEPS
        figures["batches"].append(
            {
                "batch": batch,
                "prefill_tokens_per_s": batch * PROMPT / first,
                "decode_ms_per_step": step * 1e3,
                "decode_tokens_per_s": batch / step,
            }
        )
    lengths = generator.integers(64, 1025, MIXED).tolist()
    outputs = generator.integers(64, 513, MIXED).tolist()
    seconds = timed(lengths, outputs)
    figures["mixed"] = {
        "requests": MIXED,
        "seconds": seconds,
        "output_tokens_per_s": sum(outputs) / seconds,
        "tokens_per_s": (sum(lengths) + sum(outputs)) / seconds,
    }
    return figures


def write_checkpoint(artifact: Path, folder: Path, dtype: str, config: dict[str, Any]) -> Path:
    """The artifact's weights as a checkpoint: the names and the layout are the same, so a link will do."""
    folder.mkdir(parents=True, exist_ok=True)
    rope = config.get("rope_parameters", {"rope_type": "default", "rope_theta": 10000.0})
    given = {key: value for key, value in config.items() if key != "rope_parameters"}
    whole = given | {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": rope["rope_theta"],
        "rope_parameters": rope,
        "tie_word_embeddings": False,
        "torch_dtype": dtype,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    (folder / "config.json").write_text(json.dumps(whole))
    link = folder / "model.safetensors"
    if not link.exists():
        link.symlink_to(artifact / "weights.safetensors")
    return folder


def table(figures: dict[str, Any]) -> Table:
    """Every side, how many times as fast Cleave is, and how near to the limit."""
    view = Table(title=f"{figures['shape']}, {figures['dtype']}, {figures['gpu']}")
    view.add_column("")
    for name in figures["columns"]:
        view.add_column(name, justify="right")
    for what, *values in figures["rows"]:
        view.add_row(what, *map(cell, values))
    return view


def cell(value: float | None) -> str:
    """As tables print it."""
    return "" if value is None else f"{value:,.2f}"


def rows(figures: dict[str, Any], sizes: Sizes) -> list[list[Any]]:
    """What, every side's figure, of two sides the ratio (above 1: the last one is faster), and the last one's
    percentage of the limit."""
    found: list[list[Any]] = []
    sides = list(figures["sides"].values())
    bandwidth, rate = (figures["limits"][name] for name in ("bytes_per_second", "flops_per_second"))

    def add(what: str, values: list[float], limit: float | None = None, *, is_rate: bool) -> None:
        one, other = values[-1], values[0]
        ratio = [one / other if is_rate else other / one] if len(values) > 1 else []
        percent = limit and 100 * (one / limit if is_rate else limit / one)
        found.append([what, *values, *ratio, percent])

    together = list(zip(*(side["batches"] for side in sides), strict=True))
    for same in together:
        batch = same[0]["batch"]
        limit = sizes.decode_bytes(batch, PROMPT + STEPS / 2) / bandwidth * 1e3
        add(f"decode, batch {batch}, ms/step", [s["decode_ms_per_step"] for s in same], limit, is_rate=False)
    for same in together:
        batch = same[0]["batch"]
        limit = batch * PROMPT / sizes.prefill_flops(batch, PROMPT) * rate
        rates = [one["prefill_tokens_per_s"] for one in same]
        add(f"prefill, batch {batch}, tokens/s", rates, limit, is_rate=True)
    mixed = [side["mixed"]["output_tokens_per_s"] for side in sides]
    add(f"{MIXED} requests, output tokens/s", mixed, is_rate=True)
    add("start, nothing compiled, s", [side["start_seconds"] for side in sides], is_rate=False)
    blank = [None] * (len(sides) - 1)
    warm = ["start, engine cache filled, s", *blank, figures["warm_start_seconds"], None]
    found.append(warm + blank)
    return found


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=tuple(GPU_SHAPES), default="llama-2-7b")
    parser.add_argument("--folder", type=Path, default=None, help="for weights; kept for the next run")
    parser.add_argument("--batch", default=",".join(map(str, BATCHES)))
    parser.add_argument("--only", choices=PARTS, default=None, help="print the figures of a part as JSON")
    parser.add_argument("--without_vllm", action="store_true", help="Cleave alone")
    parser.add_argument("--name", default=None, help="of the result; default: vs_vllm_SHAPE_h200, or llm_...")
    return parser.parse_args()


def part(given: argparse.Namespace) -> Any:
    """What one process measures."""
    dtype, config = GPU_SHAPES[given.shape]
    artifact = given.folder / given.shape
    sides: dict[str, Callable[[], Side]] = {
        "vllm": lambda: Vllm(
            write_checkpoint(artifact, given.folder / f"{given.shape}-checkpoint", dtype, config), dtype
        ),
        "cleave": lambda: Cleave(artifact, dtype),
    }
    if given.only == "limits":
        return limits(dtype)
    if given.only == "warm_start":
        return started(sides["cleave"])[1]
    return measure(sides[given.only], config["vocab_size"], [int(batch) for batch in given.batch.split(",")])


def in_process(name: str, given: argparse.Namespace, folder: Path, caches: Path) -> Any:
    """A part, in a process of its own; `caches` has the folders of what was compiled in this run."""
    command = [sys.executable, __file__, "--shape", given.shape, "--folder", str(folder)]
    command += ["--batch", given.batch, "--only", name]
    own = caches / ("cleave" if name == "warm_start" else name)
    environment = os.environ | {
        "TRITON_CACHE_DIR": str(own / "triton"),
        "TORCHINDUCTOR_CACHE_DIR": str(own / "inductor"),
        "VLLM_CACHE_ROOT": str(own / "vllm"),
    }
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Both sides, each in a process of its own."""
    given = options()
    if given.only is not None:
        print(json.dumps(part(given)))
        return
    if not given.without_vllm:
        require("vllm", PIN)
    require_gpu()
    import torch
    from random_artifact import random_artifact  # imports transformers, which no side needs

    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary, "weights")
        artifact = random_artifact(given.shape, folder / given.shape)
        shutil.rmtree(artifact / ENGINES, ignore_errors=True)
        os.sync()  # else what a start writes waits for the weights

        def measured(name: str) -> Any:
            return in_process(name, given, folder, Path(temporary))

        figures: dict[str, Any] = {
            "benchmark": "vs_vllm",
            "gpu": torch.cuda.get_device_name(),
            "shape": given.shape,
            "dtype": GPU_SHAPES[given.shape][0],
            "prompt": PROMPT,
            "output": STEPS,
            "limits": measured("limits"),
            "sides": {side: measured(side) for side in SIDES[given.without_vllm :]},
            "warm_start_seconds": measured("warm_start"),
        }
        sizes = Sizes.of(Artifact.open(artifact, verify=False))
    names = [side["name"] for side in figures["sides"].values()]
    figures["columns"] = [*names, *(["ratio"] if len(names) > 1 else []), "% of the limit"]
    figures["rows"] = rows(figures, sizes)
    Console(width=120).print(table(figures))
    name = given.name or f"{'llm' if given.without_vllm else 'vs_vllm'}_{given.shape}_h200"
    Console().print(f"written to {save(name, figures)}", soft_wrap=True)


if __name__ == "__main__":
    main()
