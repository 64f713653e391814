"""Artifacts of large shapes with random weights, made without a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from gpu_shapes import GPU_SHAPES
from record import RESULTS
from transformers import LlamaConfig

from cleave.export.artifact import TOKENIZER, WEIGHTS
from cleave.export.graphs import save_batchful, save_batchless
from cleave.export.manifest import EMBEDDING, MANIFEST, SIZES, FileDigest, Manifest
from cleave.export.tensorfile import TensorFileWriter, plan_layout, read_header
from cleave.export.trace import MetaModel
from cleave.export.weights import STORED

DEMO = RESULTS.parent.parent / "model_files" / "demo"
_BLOCK = 1 << 26
_APART = 1_000_003
"""Numbers between the beginnings of two weights."""


def random_artifact(shape: str, folder: Path) -> Path:
    """Write the artifact of a shape into `folder`; what is there already is left as it is."""
    dtype, config = GPU_SHAPES[shape]
    if not (folder / MANIFEST).is_file():
        write_graphs(dtype, config, folder)
    if not (folder / WEIGHTS).is_file():
        write_random_weights(dtype, config, folder)
    return folder


def write_graphs(dtype: str, config: dict[str, Any], folder: Path) -> None:
    """Everything but the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    meta = MetaModel(LlamaConfig(**config, tie_word_embeddings=False), dtype, "LlamaForCausalLM")
    graph, specs = meta.trace()
    layout = plan_layout([(name, STORED[dtype], size) for name, size in meta.shapes().items()])
    save_batchful(graph, layout, folder)
    distinct = tuple(dict.fromkeys(specs))
    parts: dict[str, tuple[str, ...]] = {"batchful": ("batchful.onnx", WEIGHTS), "embed_tokens": (WEIGHTS,)}
    for kind in ("prefill", "decode"):
        parts[f"{kind}_batchless"] = save_batchless(kind, distinct, dtype, folder)
    (folder / TOKENIZER).write_bytes((DEMO / TOKENIZER).read_bytes())
    parts["tokenizer"] = (TOKENIZER,)
    names = {name for files in parts.values() for name in files}
    sizes = {name: (folder / name).stat().st_size for name in names - {WEIGHTS}} | {WEIGHTS: layout.total}
    manifest = Manifest(
        architecture="LlamaForCausalLM",
        source="random weights",
        fingerprint="random",
        dtype=dtype,
        num_layers=len(specs),
        config={name: getattr(meta.config, name) for name in SIZES},
        specs=distinct,
        spec_of_layer=tuple(distinct.index(spec) for spec in specs),
        embedding=EMBEDDING,
        parts=parts,
        files={name: FileDigest("", size) for name, size in sizes.items()},
    )
    (folder / MANIFEST).write_text(manifest.to_json(), "utf-8")


def write_random_weights(dtype: str, config: dict[str, Any], folder: Path) -> None:
    """Weights that keep activations finite: norms of one, the rest normal with a deviation of 0.02.

    They are cut out of the same numbers, each from another place on, so that no two are alike.
    """
    meta = MetaModel(LlamaConfig(**config, tie_word_embeddings=False), dtype, "LlamaForCausalLM")
    torch.manual_seed(0)
    kind = getattr(torch, dtype)
    noise = (torch.randn(_BLOCK // kind.itemsize) * 0.02).to(kind).view(torch.uint8).repeat(2).numpy().data
    ones = torch.ones(_BLOCK // kind.itemsize, dtype=kind).view(torch.uint8).numpy().data
    layout = plan_layout([(name, STORED[dtype], size) for name, size in meta.shapes().items()])
    with TensorFileWriter(folder / WEIGHTS, layout) as writer:
        for number, (name, size) in enumerate(layout.sizes.items()):
            writer.begin(name)
            first = number * _APART * kind.itemsize % _BLOCK
            block = ones if "norm" in name else noise[first : first + _BLOCK]
            for start in range(0, size, _BLOCK):
                writer.write(block[: min(_BLOCK, size - start)])
    read_header(folder / WEIGHTS)
