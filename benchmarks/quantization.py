"""The demo checkpoint in float32, int8 and int4: its size, what quantising cost it, and its speed.

Every way is exported and measured on the text that comes with Cleave, asked the known answers, and timed in
lockstep, the ways in turn in every round.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from record import save
from rich.console import Console
from rich.progress import track
from rich.table import Table

from cleave import LLM, SamplingParams, use_one_thread_pool
from cleave.export.exporter import ExportRequest, export
from cleave.runtime.bench.lockstep import Lockstep
from cleave.runtime.bench.quiet import BUSY, OthersWatch
from cleave.threads import physical_cores

DEMO = Path(__file__).parent.parent / "model_files" / "demo"
PROMPT, OUTPUT = 128, 64
BATCHES = (1, 8)
WAYS: dict[str, dict[str, Any]] = {
    "float32": {"dtype": "float32"},
    "int8": {"quantize": "int8"},
    "int8, the embedding too": {"quantize": "int8", "quantize_embedding": True},
    "int4, groups of 32": {"quantize": "int4", "group_size": 32},
    "int4, groups of 32, lm_head not": {"quantize": "int4", "group_size": 32, "quantize_lm_head": False},
    "int4, groups of 64": {"quantize": "int4", "group_size": 64},
}
"""Groups of 128 do not divide the 704 inputs of the demo checkpoint's down_proj."""


def known_answers(llm: LLM) -> tuple[int, int]:
    """(right ones, all): the plain prompts and the conversations that come with the demo checkpoint."""
    known = json.loads((DEMO / "known_answers.json").read_text("utf-8"))
    params = SamplingParams(max_tokens=256)
    plain = [answer for answer in known if "prompt" in answer]
    given = llm.generate([answer["prompt"] for answer in plain], params)
    right = sum(got.text == answer["text"] for got, answer in zip(given, plain, strict=True))
    for answer in known:
        if "messages" in answer:
            (got,) = llm.chat([answer["messages"]], params)
            right += got.text == answer["text"]
    return right, len(known)


def time_once(llm: LLM, batch: int) -> tuple[float, float]:
    """(prefill, decode) tokens/s of one run in lockstep."""
    prompts = np.random.default_rng(0).integers(0, 3072, (batch, PROMPT))
    run = Lockstep(llm.model, prompts)
    try:
        prefill = run.prefill()
        steps = run.decode(OUTPUT)
    finally:
        run.close()
    return batch * PROMPT / prefill, batch / statistics.median(steps)


def measure(folder: Path, rounds: int, console: Console) -> dict[str, Any]:
    """The figures of every way."""
    rows: list[dict[str, Any]] = []
    models: dict[str, LLM] = {}
    for name, options in track(WAYS.items(), "exporting", console=console):
        artifact = folder / str(len(models))
        manifest = export(ExportRequest(str(DEMO), artifact, check=False, **options))
        models[name] = LLM(artifact, prefix_cache=False, max_model_len=512, max_sequences=64)
        right, known = known_answers(models[name])
        rows.append(
            {
                "way": name,
                "bytes": manifest.files["weights.safetensors"].bytes,
                "kl": manifest.quality.get("kl"),
                "perplexity_ratio": manifest.quality.get("perplexity_ratio"),
                "right": right,
                "known": known,
            }
        )
    speeds: dict[tuple[str, int], list[tuple[float, float]]] = {}
    with OthersWatch() as watch:
        for _ in track(range(rounds), "timing", console=console):
            for name, model in models.items():
                for batch in BATCHES:
                    speeds.setdefault((name, batch), []).append(time_once(model, batch))
    for row in rows:
        for batch in BATCHES:
            runs = speeds[row["way"], batch][1:]  # the first one warms up
            row[f"prefill_{batch}"] = statistics.median(run[0] for run in runs)
            row[f"decode_{batch}"] = statistics.median(run[1] for run in runs)
    for model in models.values():
        model.close()
    return {
        "threads": physical_cores(),
        "prompt": PROMPT,
        "output": OUTPUT,
        "rounds": rounds - 1,
        "disturbed": watch.cores > BUSY,
        "rows": rows,
    }


def main() -> int:
    """Measure, print the table, write results/quantization.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=6, help="timed rounds, the first of which warms up")
    arguments = parser.parse_args()
    if arguments.rounds < 2:
        parser.error("--rounds must be at least 2")
    use_one_thread_pool()
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), arguments.rounds, console)
    table = Table(title="the demo checkpoint")
    for name in figures["rows"][0]:
        table.add_column(name.replace("_", " "), justify="left" if name == "way" else "right")
    for row in figures["rows"]:
        table.add_row(
            *(f"{value:,.4g}" if isinstance(value, float) else str(value) for value in row.values())
        )
    console.print(table)
    console.print(f"written to {save('quantization', figures)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
