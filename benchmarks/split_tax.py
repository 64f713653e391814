"""The split tax: what it costs to run a model in pieces and hand q, k, v over between them.

Three things are timed in turn, in the same process and over the same weights:

- `whole`: the batchful graph uncut in one ONNX Runtime session, attention replaced by Identity;
- `pieces`: the engine as it is, with an attention server that does nothing;
- `step`: the engine with the real attention server, over sequences of `--context` tokens.

The split tax of a layer is (pieces - whole) / layers; attention takes step - pieces.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from record import save
from rich.console import Console
from rich.table import Table
from shapes import SHAPES
from transformers import LlamaConfig, LlamaForCausalLM

from cleave.export.artifact import Artifact
from cleave.export.exporter import ExportRequest, export
from cleave.export.pieces import Piece
from cleave.kvcache.step import Chunk
from cleave.plugins.schema import is_cut
from cleave.runtime.engines.onnxruntime import OnnxRuntimeEngine, make_session
from cleave.runtime.model import Model
from cleave.runtime.model_options import ModelOptions
from cleave.threads import own_process

DEMO = Path(__file__).parent.parent / "model_files" / "demo"
SHAPE_135M = LlamaConfig(**SHAPES["135m"])


class NoAttention:
    """An attention server that returns at once; what it leaves in `out` does not matter for time."""

    def run(self, layer: int, q: Any, k: Any, v: Any, out: Any) -> None:
        """Do nothing."""


def whole_session(artifact: Artifact, threads: int) -> ort.InferenceSession:
    """The uncut graph with Identity in place of attention, weights packed as the engine packs them."""
    graph = artifact.batchful_graph()
    for node in graph.graph.node:
        if is_cut(node):
            node.op_type, node.domain = "Identity", ""
            del node.input[1:], node.attribute[:]
    # k and v would be removed as unused: they stay as outputs.
    cuts = [list(node.input) for node in artifact.batchful_graph().graph.node if is_cut(node)]
    for value in [value for value in graph.graph.value_info if any(value.name in cut[1:] for cut in cuts)]:
        graph.graph.output.append(value)
    weights = {
        tensor.name: tensor
        for tensor in graph.graph.initializer
        if tensor.data_location == onnx.TensorProto.EXTERNAL
    }
    for tensor in weights.values():
        graph.graph.initializer.remove(tensor)
        graph.graph.input.append(
            onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        )
    piece = Piece(graph, (), (), {name: name for name in weights}, {})
    return make_session(piece, artifact, threads)[0]


def bind_whole(session: ort.InferenceSession, batch: int, hidden: int) -> ort.IOBinding:
    """Inputs and outputs of the uncut graph, bound once."""
    binding = session.io_binding()
    embeds = np.random.default_rng(0).standard_normal((batch, hidden), dtype=np.float32)
    binding.bind_ortvalue_input("inputs_embeds", ort.OrtValue.ortvalue_from_numpy(embeds))
    binding.bind_ortvalue_input("logit_rows", ort.OrtValue.ortvalue_from_numpy(np.arange(batch)))
    for output in session.get_outputs():
        width = output.shape[1]
        array = np.empty((batch, width), np.float32)
        binding.bind_ortvalue_output(output.name, ort.OrtValue.ortvalue_from_numpy(array))
    return binding


def prefill(model: Model, batch: int, context: int) -> None:
    """Open `batch` sequences and fill them with `context` random tokens."""
    tokens = np.random.default_rng(1).integers(0, 256, context)
    for sequence in range(batch):
        model.attention.open(sequence)
        for start in range(0, context, model.max_tokens_per_step):
            part = tokens[start : start + model.max_tokens_per_step]
            model.attention.plan([Chunk(sequence, start, len(part))])
            model.engine.run(part, np.array([0]), model.attention)
            model.attention.commit()


def timed(variants: dict[str, Callable[[], None]], repetitions: int) -> dict[str, list[float]]:
    """Seconds of every variant, taken in turn so that a busy moment meets all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for repetition in range(repetitions + 3):
        for name, run in variants.items():
            began = time.perf_counter()
            run()
            if repetition >= 3:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def measure(
    name: str, folder: Path, batch: int, context: int, threads: int, repetitions: int
) -> dict[str, Any]:
    """One row of the table."""
    artifact = Artifact.open(folder, verify=False)
    layers = artifact.manifest.num_layers
    session = whole_session(artifact, threads)
    binding = bind_whole(session, batch, artifact.manifest.hidden_size)
    model = Model(
        folder, ModelOptions(threads=threads, verify=False, max_model_len=context + repetitions + 8)
    )
    if not isinstance(model.engine, OnnxRuntimeEngine):
        raise TypeError("the split tax is that of the engine onnxruntime")
    prefill(model, batch, context)
    tokens, rows = np.arange(batch), np.arange(batch)
    nothing = NoAttention()

    def step() -> None:
        model.attention.plan([Chunk(sequence, context, 1) for sequence in range(batch)])
        model.engine.run(tokens, rows, model.attention)
        model.attention.rollback()

    seconds = timed(
        {
            "whole": lambda: session.run_with_iobinding(binding),
            "pieces": lambda: model.engine.run(tokens, rows, nothing),
            "step": step,
        },
        repetitions,
    )
    model.close()
    median = {key: statistics.median(values) for key, values in seconds.items()}
    tax = statistics.median(
        pieces - whole for pieces, whole in zip(seconds["pieces"], seconds["whole"], strict=True)
    )
    return {
        "model": name,
        "batch": batch,
        "context": context,
        "threads": threads,
        "layers": layers,
        "repetitions": repetitions,
        **{f"{key}_ms": round(value * 1e3, 3) for key, value in median.items()},
        "split_us_per_layer": round(tax / layers * 1e6, 1),
        "split_percent_of_step": round(tax / median["step"] * 100, 1),
        "attention_us_per_layer": round((median["step"] - median["pieces"]) / layers * 1e6, 1),
    }


def main() -> None:
    """Measure the demo and a 135 M-parameter shape, print the table, write results/split_tax.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", default="1,8,32")
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=100)
    arguments = parser.parse_args()
    own_process()
    figures = []
    with tempfile.TemporaryDirectory() as temporary:
        shape = Path(temporary) / "135m"
        torch.manual_seed(0)
        LlamaForCausalLM(SHAPE_135M).to(torch.bfloat16).save_pretrained(shape)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (shape / name).write_bytes((DEMO / name).read_bytes())
        for name, checkpoint in (("demo", DEMO), ("135M shape", shape)):
            folder = Path(temporary) / f"{checkpoint.name}-artifact"
            export(ExportRequest(str(checkpoint), folder, dtype="float32", check=False))
            for batch in map(int, arguments.batch.split(",")):
                figures.append(
                    measure(name, folder, batch, arguments.context, arguments.threads, arguments.repetitions)
                )
    table = Table(title=f"Split tax, one decode step over {arguments.context} tokens, medians")
    for column in figures[0]:
        if column not in ("context", "repetitions"):
            table.add_column(column.replace("_", " "), justify="left" if column == "model" else "right")
    for row in figures:
        table.add_row(*(str(value) for key, value in row.items() if key not in ("context", "repetitions")))
    console = Console()
    console.print(table)
    console.print(f"written to {save('split_tax', figures)}")


if __name__ == "__main__":
    main()
