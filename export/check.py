"""The check of an export: its graphs against transformers, on random tokens, in a process of its own.

`python -m cleave.export.check CHECKPOINT ARTIFACT DEVICE` prints the result as one line of JSON.
"""

from __future__ import annotations

import gc
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import psutil

from cleave.errors import CleaveError, ExportError
from cleave.export.artifact import Artifact, load_graph
from cleave.export.checkpoint import Checkpoint
from cleave.export.dequantized import dequantized_matrix, float_graph, use_dequantized, use_weights
from cleave.export.manifest import Manifest
from cleave.export.pieces import ATTENTION, Piece, cut
from cleave.export.session import Arrays, GraphSession
from cleave.export.widening import computable, widen

TOLERANCE = 1e-4
"""Of |error| / |logits| in float32; what was seen is 1e-6, a wrong graph gives 1e-2 and more."""

_TOKENS = 48
_SEED = 0


def run_check(checkpoint: Checkpoint, artifact: Path, manifest: Manifest, *, device: str) -> dict[str, Any]:
    """Check in a new process, so that its memory comes after the export's and is all given back.

    Where the model does not fit the free memory in float32 the check is left out, and the result says
    so. Raises ExportError where the graphs disagree with transformers.
    """
    values = sum(map(math.prod, checkpoint.shapes.values()))
    needed, free = values * 4 * 5 // 4, psutil.virtual_memory().available
    if needed > free:
        return {
            "skipped": f"transformers in float32 needs {needed / 2**30:.1f} GiB of memory, "
            f"and {free / 2**30:.1f} GiB are free"
        }
    command = [sys.executable, "-m", "cleave.export.check", str(checkpoint.folder), str(artifact), device]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise ExportError(f"the check of the export failed: {reason}")
    result: dict[str, Any] = json.loads(lines[-1])
    if not result.pop("is_finite"):
        raise ExportError(
            f"{checkpoint.folder} gives logits that are no numbers, in transformers too; nothing was "
            "exported: is the checkpoint whole? --no_check exports it nonetheless"
        )
    if not result["relative_error"] <= TOLERANCE:
        raise ExportError(
            f"the exported graphs disagree with transformers: relative error of the logits "
            f"{result['relative_error']:.1e}, allowed {TOLERANCE:.0e}. Nothing was exported; "
            f"please report {manifest.architecture} with its config.json"
        )
    return result


def compare(checkpoint: Path, folder: Path, device: str) -> dict[str, Any]:
    """The error of the artifact's logits against transformers in float32, over one sequence.

    Of a quantised artifact the weights are compared, as floats in both: the error is that of the graph.
    What the integer operators add is told beside it.
    All tokens but the last run through the prefill graph, the last one through the decode graph.
    """
    artifact = Artifact.open(folder, verify=False)
    manifest = artifact.manifest
    count = min(_TOKENS, manifest.max_position)
    tokens = np.random.default_rng(_SEED).integers(0, manifest.vocab_size, count)
    expected = _transformers_logits(checkpoint, artifact, tokens, device)
    gc.collect()
    got = _artifact_logits(artifact, float_graph(artifact), tokens)
    error = np.abs(got - expected)
    quantized: dict[str, Any] = {}
    if manifest.quantization is not None:
        gc.collect()
        rounded = _artifact_logits(artifact, artifact.batchful_graph(), tokens)
        quantized["integer_operators_relative_error"] = float(
            np.linalg.norm(rounded - expected) / np.linalg.norm(expected)
        )
        quantized["integer_operators_same_argmax"] = int((rounded.argmax(-1) == expected.argmax(-1)).sum())
    return quantized | {
        "is_finite": bool(np.isfinite(expected).all()),
        "against": "transformers, float32",
        "device": device,
        "tokens": count,
        "max_abs_error": float(error.max()),
        "relative_error": float(np.linalg.norm(error) / np.linalg.norm(expected)),
        "same_argmax": int((got.argmax(-1) == expected.argmax(-1)).sum()),
    }


def _transformers_logits(
    checkpoint: Path, artifact: Artifact, tokens: npt.NDArray[np.int64], device: str
) -> npt.NDArray[np.float32]:
    import torch
    from transformers import AutoModelForCausalLM

    from cleave.export.config import load_config

    manifest = artifact.manifest
    model = AutoModelForCausalLM.from_pretrained(
        checkpoint,
        config=load_config(checkpoint, manifest.num_layers),
        dtype=getattr(torch, manifest.dtype),  # rounded as the artifact's weights are, then widened
        attn_implementation="eager",
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
    )
    model = model.float()
    use_dequantized(model, artifact)
    ready = Checkpoint(checkpoint).ready
    if ready is not None:  # read once more by the checkpoint's own layout, the artifact left aside
        use_weights(model, ready.all_dequantized(manifest.num_layers))
    model = model.to(device).eval()
    with torch.no_grad():
        logits = model(torch.from_numpy(tokens)[None].to(device)).logits[0]
    result: npt.NDArray[np.float32] = logits.cpu().numpy()
    return result


def _artifact_logits(
    artifact: Artifact, graph: onnx.ModelProto, tokens: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    """Logits of every token by the batchful `graph`: by ONNX Runtime alone, one piece in memory at a time."""
    manifest = artifact.manifest
    embeds = artifact.embedding_rows()(tokens).astype(np.float32) * np.float32(manifest.embedding_scale)
    rows = len(tokens) - 1
    passes: list[Arrays] = [
        {"inputs_embeds": embeds[:rows], "logit_rows": np.arange(rows)},
        {"inputs_embeds": embeds[rows:], "logit_rows": np.zeros(1, np.int64)},
    ]
    graphs = artifact.batchless_graphs()
    pieces = cut(graph)
    for layer, piece in enumerate(pieces):
        model = widen(piece.model)
        session = GraphSession(model, _weights(artifact, model, piece))
        for values in passes:
            inputs = {name: values[name] for name in piece.inputs}
            values |= session.run(inputs, piece.outputs)
            values |= {carried: values[name] for carried, name in piece.hands_on.items()}
        if layer < len(graphs):
            _attend(passes, graphs[layer], manifest, layer, len(tokens))
    return np.concatenate([values["logits"] for values in passes])


def _weights(artifact: Artifact, model: onnx.ModelProto, piece: Piece) -> Arrays:
    """The weights of a piece, as integers or floats as it asks for them."""
    quantization = artifact.manifest.quantization
    tensors = {tensor.name: tensor for tensor in (quantization.tensors if quantization else ())}
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    weights: Arrays = {}
    for name, tensor in piece.weights.items():
        if tensor in tensors and types[name] == onnx.TensorProto.FLOAT:
            weights[name] = dequantized_matrix(artifact, tensors[tensor])
        else:
            weights[name] = computable(artifact.weight(tensor))
    return weights


def _attend(
    passes: list[Arrays], graphs: tuple[Path, Path], manifest: Manifest, layer: int, context: int
) -> None:
    """Attention of one layer for both passes, by the exported graphs over one cache."""
    spec = manifest.layer_specs[layer]
    cache: Arrays = {
        name: np.zeros((context, spec.kv_heads, spec.head_dim), np.float32) for name in ("k_cache", "v_cache")
    }
    first = 0
    for values, graph in zip(passes, graphs, strict=True):
        end = first + len(values["q"])
        oldest = max(0, end - spec.window) if spec.window and end - first == 1 else 0
        slots = {"positions": np.arange(first, end), "slots": np.arange(first, end)}
        inputs = {name: values[name] for name in ("q", "k", "v")} | slots | cache
        inputs["context_slots"] = np.arange(oldest, end)
        results = GraphSession(widen(load_graph(graph))).run(inputs, ("out", "k_cache_out", "v_cache_out"))
        values[ATTENTION] = results["out"]
        cache = {"k_cache": results["k_cache_out"], "v_cache": results["v_cache_out"]}
        first = end


def main(arguments: list[str]) -> int:
    """The process that `run_check` starts."""
    checkpoint, artifact, device = arguments
    try:
        result = compare(Path(checkpoint), Path(artifact), device)
    except CleaveError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write(json.dumps(result) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
