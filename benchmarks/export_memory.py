"""The memory of an export: tracing and writing a random 1.1 B-parameter checkpoint.

The promise is a peak of at most twice the largest tensor + 1.5 GB, whatever the checkpoint's size.
`cleave export --no_check` runs in a process of its own, whose peak resident memory is read when it ends.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from record import save
from rich.console import Console
from rich.progress import track
from rich.table import Table
from safetensors.torch import save_file
from shapes import SHAPES
from transformers import AutoModelForCausalLM, LlamaConfig

DEMO = Path(__file__).parent.parent / "model_files" / "demo"
SHARD = 1 << 28
LAUNCHER = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
"""Linux counts the memory of the process that starts another one as that one's peak too, so a small
process starts the export, and not this one, which holds torch and a shard of the checkpoint."""
SHAPE_1100M = LlamaConfig(**SHAPES["1b"], architectures=["LlamaForCausalLM"])


def write_checkpoint(folder: Path) -> dict[str, int]:
    """Write random bfloat16 weights shard by shard; gives back the bytes of every tensor."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(SHAPE_1100M, dtype=torch.bfloat16)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    folder.mkdir()
    SHAPE_1100M.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((DEMO / name).read_bytes())
    places: dict[str, str] = {}
    sizes: dict[str, int] = {}
    shard: dict[str, torch.Tensor] = {}
    torch.manual_seed(0)

    def flush() -> None:
        file = f"model-{len(set(places.values())) + 1:05d}.safetensors"
        save_file(shard, folder / file)
        places.update(dict.fromkeys(shard, file))
        shard.clear()

    for name, shape in track(shapes.items(), "writing the checkpoint", console=Console(stderr=True)):
        shard[name] = (torch.randn(shape) * 0.02).to(torch.bfloat16)
        sizes[name] = shard[name].nbytes
        if sum(tensor.nbytes for tensor in shard.values()) > SHARD:
            flush()
    flush()
    index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")
    return sizes


def export_in_a_process(checkpoint: Path, artifact: Path) -> tuple[float, int]:
    """Seconds and peak resident bytes of the export."""
    began = time.perf_counter()
    export = [sys.executable, "-m", "cleave", "export", "--model", str(checkpoint), "--no_check"]
    command = [sys.executable, "-c", LAUNCHER, *export, "--output_dir", str(artifact)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return time.perf_counter() - began, int(done.stdout) * 1024


def measure() -> dict[str, Any]:
    """The figures, in bytes and seconds."""
    with tempfile.TemporaryDirectory() as temporary:
        sizes = write_checkpoint(Path(temporary) / "checkpoint")
        seconds, peak = export_in_a_process(Path(temporary) / "checkpoint", Path(temporary) / "artifact")
    largest = max(sizes.values())
    return {
        "parameters": sum(sizes.values()) // 2,
        "checkpoint_bytes": sum(sizes.values()),
        "largest_tensor_bytes": largest,
        "peak_resident_bytes": peak,
        "allowed_bytes": 2 * largest + 1_500_000_000,
        "seconds": round(seconds, 1),
    }


def main() -> int:
    """Measure, print the table, write results/export_memory.json; 1 where the promise is broken."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    figures = measure()
    table = Table(title="Export of a random 1.1 B-parameter checkpoint, bfloat16")
    table.add_column("")
    table.add_column("", justify="right")
    for name, value in figures.items():
        shown = f"{value / 1e6:,.0f} MB" if name.endswith("bytes") else f"{value:,}"
        table.add_row(name.replace("_bytes", "").replace("_", " "), shown)
    console = Console()
    console.print(table)
    console.print(f"written to {save('export_memory', figures)}")
    return int(figures["peak_resident_bytes"] > figures["allowed_bytes"])


if __name__ == "__main__":
    sys.exit(main())
