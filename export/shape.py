"""The shape of a model: what it needs room for, read from configs and safetensors headers alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from cleave.errors import ArtifactError, CheckpointError
from cleave.export.artifact import WEIGHTS, read_manifest
from cleave.export.checkpoint import Checkpoint, is_hub_id
from cleave.export.manifest import EMBEDDING, LM_HEAD, MANIFEST, Manifest
from cleave.export.quantization import SCALE, Quantization, QuantizedTensor
from cleave.export.quantized_checkpoint import QuantizedCheckpoint
from cleave.export.tensorfile import ITEM_BYTES, StoredTensor, read_header
from cleave.plugins.spec import AttentionSpec

_QUANTIZED_COMPUTES_IN = "float32"
_NOT_WEIGHTS = ("rotary_emb.inv_freq",)
"""Ends of the names of buffers that old checkpoints keep and no graph reads."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of a checkpoint or an artifact; widths in values, not bytes."""

    source: str
    architecture: str
    dtype: str
    """Of the weights as they are stored: "float32", "float16" or "bfloat16"."""
    context: int
    """Most tokens of a sequence."""
    hidden: int
    intermediate: int
    vocab: int
    layers: tuple[AttentionSpec, ...]
    """The attention spec of every layer; that of a checkpoint is without rope, which needs no room."""
    parameters: int
    """Values of all weights, tied ones counted once."""
    quantized_bytes: int | None = None
    """All weights of a quantised artifact as they are stored; None: nothing is quantised."""

    @classmethod
    def of(cls, folder: Path) -> ModelShape:
        """The shape of the checkpoint or artifact in a folder.

        Reads config.json or manifest.json and the headers of the weights, and imports neither torch nor
        transformers. Raises CheckpointError or ArtifactError.
        """
        if not folder.is_dir():
            hint = ""
            if is_hub_id(str(folder)) and not folder.exists():
                hint = "; hub ids are for `cleave export`, which fetches the checkpoint"
            raise ArtifactError(f"there is no artifact and no checkpoint at {folder}; give its folder{hint}")
        return _of_artifact(folder) if (folder / MANIFEST).is_file() else _of_checkpoint(folder)


def _of_artifact(folder: Path) -> ModelShape:
    manifest = read_manifest(folder)
    if "batchful" not in manifest.parts or not (folder / WEIGHTS).is_file():
        raise ArtifactError(f"{folder} has no weights yet; export batchful, or give the checkpoint")
    tensors = read_header(folder / WEIGHTS)
    quantization = manifest.quantization
    return ModelShape(
        source=str(folder),
        architecture=manifest.architecture,
        dtype=manifest.dtype,
        context=manifest.max_position,
        hidden=manifest.hidden_size,
        intermediate=_intermediate(_matrices(tensors, quantization), manifest.hidden_size),
        vocab=manifest.vocab_size,
        layers=manifest.layer_specs,
        parameters=_parameters(tensors, manifest),
        quantized_bytes=sum(tensor.nbytes for tensor in tensors.values()) if quantization else None,
    )


def _of_checkpoint(folder: Path) -> ModelShape:
    checkpoint = Checkpoint(folder)
    config = checkpoint.config
    shapes = {name: shape for name, shape in checkpoint.shapes.items() if not name.endswith(_NOT_WEIGHTS)}
    if config.get("tie_word_embeddings"):
        shapes.pop(LM_HEAD, None)
    vocab, hidden = _matrix(checkpoint, EMBEDDING)
    return ModelShape(
        source=str(folder),
        architecture=checkpoint.architecture,
        dtype=checkpoint.dtype if checkpoint.ready is None else _QUANTIZED_COMPUTES_IN,
        context=_number(checkpoint, "max_position_embeddings"),
        hidden=hidden,
        intermediate=_intermediate(shapes, hidden),
        vocab=vocab,
        layers=tuple(_layer_spec(checkpoint, layer) for layer in range(checkpoint.layers)),
        parameters=sum(map(prod, shapes.values())),
        quantized_bytes=_packed_bytes(checkpoint.ready, shapes) if checkpoint.ready else None,
    )


def _packed_bytes(ready: QuantizedCheckpoint, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """What the artifact of a quantised checkpoint will take: what is not packed is in float32 there."""
    plain = sum(prod(shape) for name, shape in shapes.items() if name not in ready.shapes)
    how = Quantization(ready.method, ready.group_size)
    packed = 0
    for name, (out, inputs) in ready.shapes.items():
        stored = how.stored(QuantizedTensor(name, ((name, out),), inputs))
        packed += sum(ITEM_BYTES[dtype] * prod(shape) for _, dtype, shape in stored)
    return ITEM_BYTES["F32"] * plain + packed


def _layer_spec(checkpoint: Checkpoint, layer: int) -> AttentionSpec:
    """From the shapes of the projections, since configs leave out what is their class's default."""
    heads = _number(checkpoint, "num_attention_heads")
    q_size, _ = _matrix(checkpoint, f"model.layers.{layer}.self_attn.q_proj.weight")
    kv_size, _ = _matrix(checkpoint, f"model.layers.{layer}.self_attn.k_proj.weight")
    head_dim = q_size // heads
    if not head_dim or q_size % heads or kv_size % head_dim:
        raise CheckpointError(
            f"layer {layer} of {checkpoint.folder} has projections of {q_size} and {kv_size} rows, "
            f"which do not divide into {heads} heads"
        )
    return AttentionSpec(
        heads, kv_size // head_dim, head_dim, head_dim**-0.5, window=_window(checkpoint.config, layer)
    )


def _window(config: Mapping[str, Any], layer: int) -> int | None:
    """The sliding window of a layer; each family says it in its own way, new configs layer by layer."""
    window = config.get("sliding_window")
    kinds = config.get("layer_types")
    if not isinstance(window, int):
        return None
    if isinstance(kinds, list) and layer < len(kinds):
        return window if kinds[layer] == "sliding_attention" else None
    if str(config.get("model_type", "")).startswith("qwen"):
        is_windowed = config.get("use_sliding_window") and layer >= int(config.get("max_window_layers", 0))
        return window if is_windowed else None
    return window if config.get("model_type") == "mistral" else None


def _matrices(
    tensors: Mapping[str, StoredTensor], quantization: Quantization | None
) -> dict[str, tuple[int, ...]]:
    """The shapes of an artifact's weights as the checkpoint had them, [out, in]."""
    stored = set(quantization.stored_names) if quantization else set()
    shapes = {name: tensor.shape for name, tensor in tensors.items() if name not in stored}
    for tensor in quantization.tensors if quantization else ():
        is_head = tensor.name == LM_HEAD
        shapes |= {LM_HEAD if is_head else name: (out, tensor.inputs) for name, out in tensor.members}
    return shapes


def _parameters(tensors: Mapping[str, StoredTensor], manifest: Manifest) -> int:
    shapes = _matrices(tensors, manifest.quantization)
    shapes.pop(manifest.embedding + SCALE, None)
    if manifest.config.get("tie_word_embeddings"):
        shapes.pop(LM_HEAD, None)
    return sum(map(prod, shapes.values()))


def _intermediate(shapes: Mapping[str, tuple[int, ...]], hidden: int) -> int:
    """Width of the MLP: the most rows of one of its matrices."""
    rows = [shape[0] for name, shape in shapes.items() if ".mlp." in name and shape]
    return max(rows, default=hidden)


def _matrix(checkpoint: Checkpoint, name: str) -> tuple[int, int]:
    shape = checkpoint.shapes.get(name) or checkpoint.tensor(name).shape
    if len(shape) != 2:
        raise CheckpointError(f"{name} of {checkpoint.folder} is {list(shape)}; a matrix was expected")
    return shape[0], shape[1]


def _number(checkpoint: Checkpoint, name: str) -> int:
    value = checkpoint.config.get(name)
    if type(value) is not int or value < 1:
        raise CheckpointError(f"{name} in {checkpoint.folder / 'config.json'} is {value!r}")
    return value
