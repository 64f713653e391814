"""Cleave beside vLLM on one GPU: the same random weights, one after the other in one run; or Cleave alone.

Each side loads the shape in a process of its own and generates through its public interface,
`LLM.generate`, greedily, end-of-sequence tokens ignored, the prefix cache off. By batch: the time of one
token after prompts of 512 (prefill), and of 64 more (decode); then 400 requests at once with prompts of
64 to 1024 tokens and outputs of 64 to 512. vLLM does not detokenise, Cleave does.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from random_artifact import GPU_SHAPES, random_artifact
from record import save
from rich.console import Console
from rich.table import Table
from side_by_side import require

PIN = "vllm==0.20.2"
SIDES = ("vllm", "cleave")
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
            cache=folder / "engines",
        )
        self.name = f"cleave {importlib.metadata.version('cleave')} (inductor + triton)"

    def generate(self, prompts: Prompts, outputs: Sequence[int]) -> list[int]:
        """See `Side`."""
        params = [self._params(temperature=0, max_tokens=count, ignore_eos=True) for count in outputs]
        return [len(answer.token_ids) for answer in self._llm.generate(prompts, params, progress=False)]


def measure(make: Callable[[], Side], vocab: int, batches: Sequence[int]) -> dict[str, Any]:
    """All figures of one side; times are the best of three prefills and of two runs that decode."""
    began = time.perf_counter()
    side = make()
    figures: dict[str, Any] = {"name": side.name, "start_seconds": time.perf_counter() - began}
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
    """Every side, and how many times as fast Cleave is."""
    view = Table(title=f"{figures['shape']}, {figures['dtype']}, {figures['gpu']}")
    view.add_column("")
    for name in head(figures):
        view.add_column(name, justify="right")
    for what, *values in figures["rows"]:
        view.add_row(what, *(f"{value:,.2f}" for value in values))
    return view


def head(figures: dict[str, Any]) -> list[str]:
    """The columns of the rows."""
    names = [side["name"] for side in figures["sides"].values()]
    return [*names, "ratio"] if len(names) > 1 else names


def rows(sides: list[dict[str, Any]]) -> list[list[Any]]:
    """What, every side's figure, and of two sides the ratio: above 1, the last one is faster."""
    found: list[list[Any]] = []

    def add(what: str, values: list[float], *, is_rate: bool) -> None:
        ratio = [values[1] / values[0] if is_rate else values[0] / values[1]] if len(values) > 1 else []
        found.append([what, *values, *ratio])

    together = list(zip(*(side["batches"] for side in sides), strict=True))
    for same in together:
        steps = [one["decode_ms_per_step"] for one in same]
        add(f"decode, batch {same[0]['batch']}, ms/step", steps, is_rate=False)
    for same in together:
        rates = [one["prefill_tokens_per_s"] for one in same]
        add(f"prefill, batch {same[0]['batch']}, tokens/s", rates, is_rate=True)
    mixed = [side["mixed"]["output_tokens_per_s"] for side in sides]
    add(f"{MIXED} requests, output tokens/s", mixed, is_rate=True)
    add("start, s", [side["start_seconds"] for side in sides], is_rate=False)
    return found


def main() -> None:
    """Both sides, each in a process of its own."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--shape", choices=tuple(GPU_SHAPES), default="llama-2-7b")
    options.add_argument("--folder", type=Path, default=None, help="for weights; kept for the next run")
    options.add_argument("--batch", default=",".join(map(str, BATCHES)))
    options.add_argument("--only", choices=SIDES, default=None, help="print one side's figures as JSON")
    options.add_argument("--without_vllm", action="store_true", help="Cleave alone")
    options.add_argument(
        "--name", default=None, help="of the result; default: vs_vllm_SHAPE_h200, or llm_..."
    )
    given = options.parse_args()
    dtype, config = GPU_SHAPES[given.shape]
    batches = [int(batch) for batch in given.batch.split(",")]
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        artifact = folder / given.shape
        if given.only is not None:
            checkpoint = write_checkpoint(artifact, folder / f"{given.shape}-checkpoint", dtype, config)
            sides: dict[str, Callable[[], Side]] = {
                "vllm": lambda: Vllm(checkpoint, dtype),
                "cleave": lambda: Cleave(artifact, dtype),
            }
            print(json.dumps(measure(sides[given.only], config["vocab_size"], batches)))
            return
        if not given.without_vllm:
            require("vllm", PIN)
        import torch

        if not torch.cuda.is_available():
            sys.stderr.write("error: torch sees no GPU; this compares on a GPU only\n")
            sys.exit(2)
        random_artifact(given.shape, artifact)
        found = {}
        for side in SIDES[given.without_vllm :]:
            command = [sys.executable, __file__, "--shape", given.shape, "--folder", str(folder)]
            command += ["--batch", given.batch, "--only", side]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found[side] = json.loads(done.stdout.splitlines()[-1])
        figures = {
            "benchmark": "vs_vllm",
            "gpu": torch.cuda.get_device_name(),
            "shape": given.shape,
            "dtype": dtype,
            "prompt": PROMPT,
            "output": STEPS,
            "sides": found,
            "rows": rows(list(found.values())),
        }
        figures["columns"] = head(figures)
    console = Console()
    console.print(table(figures))
    name = given.name or f"{'llm' if given.without_vllm else 'vs_vllm'}_{given.shape}_h200"
    console.print(f"written to {save(name, figures)}", soft_wrap=True)


if __name__ == "__main__":
    main()
