"""How an export is to be quantised: what was asked for, what is there already, what the checkpoint is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from cleave.errors import ExportError
from cleave.export.checkpoint import Checkpoint
from cleave.export.manifest import EMBEDDING, LM_HEAD, Manifest
from cleave.export.quantization import Quantization
from cleave.export.quantized import check_group_size
from cleave.export.request import ExportRequest

COMPUTES_IN = "float32"
"""What a quantised graph computes in between two products: the processors that it is for have no other."""
_MOST_INPUTS = (2**31 - 1) // (255 * 127)
"""Of int8: the largest activation times the largest weight, as often, is what an int32 holds."""


def choose_quantization(
    request: ExportRequest, checkpoint: Checkpoint, kept: Manifest | None
) -> Quantization | None:
    """How to quantise, None for not at all. `kept` is what stays in output_dir, to be added to.

    Raises ExportError for options that do not go with each other, with `kept`, or with the checkpoint.
    """
    asked = _asked(request, checkpoint, kept)
    if asked is not None and request.dtype not in (None, COMPUTES_IN):
        raise ExportError(
            f"dtype {request.dtype} and quantised weights do not go together: what stays unquantised is "
            f"{COMPUTES_IN}; leave --dtype out"
        )
    if kept is None:
        return asked
    before = replace(kept.quantization, tensors=()) if kept.quantization else None
    if before != asked:
        old, new = (item.description if item else "no quantisation" for item in (before, asked))
        raise ExportError(
            f"{request.output_dir} was exported with {old}, which does not mix with {new}; "
            "leave --quantize out, choose another --output_dir, or export all parts anew"
        )
    return kept.quantization


def check_quantization(
    quantization: Quantization, shapes: Mapping[str, tuple[int, ...]], *, is_tied: bool, ready: bool
) -> None:
    """Raises ExportError where the model, its weights of `shapes`, cannot be quantised so."""
    if quantization.embedding and is_tied and not quantization.lm_head:
        raise ExportError(
            "lm_head is tied to the embedding, and would read it in floats; leave --quantize_embedding out, "
            "or quantise lm_head too"
        )
    for name, shape in shapes.items():
        if quantization.group_size is None and is_wanted(quantization, name) and shape[-1] > _MOST_INPUTS:
            raise ExportError(
                f"{name} has {shape[-1]} inputs; sums of more than {_MOST_INPUTS} products do not fit the 32 "
                "bits of int8: use --quantize int4"
            )
    if quantization.group_size is not None and not ready:
        for name, shape in shapes.items():
            if is_wanted(quantization, name):
                check_group_size(quantization.group_size, shape[-1], name)


def is_wanted(quantization: Quantization, name: str) -> bool:
    """Whether a weight that a graph reads is to be quantised: vectors are not, lm_head if it is chosen."""
    if name in (EMBEDDING, LM_HEAD):
        return quantization.lm_head
    return name.endswith("_proj.weight")


def _asked(request: ExportRequest, checkpoint: Checkpoint, kept: Manifest | None) -> Quantization | None:
    ready, before = checkpoint.ready, kept.quantization if kept else None
    if ready is not None:
        if request.quantize is not None:
            raise ExportError(
                f"{request.model} is quantised already, to {ready.method}; leave --quantize out, or give the "
                "unquantised checkpoint"
            )
        if request.group_size not in (None, ready.group_size):
            raise ExportError(
                f"group_size is {request.group_size}, and {request.model} has groups of {ready.group_size}; "
                "leave --group_size out"
            )
        if LM_HEAD in ready.shapes and request.quantize_lm_head is False:
            raise ExportError(
                f"lm_head of {request.model} is quantised already; leave --no_quantize_lm_head out, or give "
                "the unquantised checkpoint"
            )
        lm_head = LM_HEAD in ready.shapes or bool(request.quantize_lm_head)
        embedding = bool(request.quantize_embedding)
        return Quantization(ready.method, ready.group_size, lm_head=lm_head, embedding=embedding)
    if request.quantize is not None:
        return request.quantization
    others = (request.group_size, request.quantize_lm_head, request.quantize_embedding)
    if any(other is not None for other in others) and before is None:
        raise ExportError("group_size, quantize_lm_head and quantize_embedding need --quantize int8 or int4")
    if before is None:
        return None
    return Quantization(
        before.method,
        before.group_size if request.group_size is None else request.group_size,
        lm_head=before.lm_head if request.quantize_lm_head is None else request.quantize_lm_head,
        embedding=before.embedding if request.quantize_embedding is None else request.quantize_embedding,
    )
