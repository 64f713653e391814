"""`cleave plan`: what fits a given memory, before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from cleave.amounts import parse_memory
from cleave.errors import PlanError
from cleave.export.shape import ModelShape
from cleave.kvcache.budget import mib
from cleave.kvcache.memory_plan import ITEM_BYTES, STEP_TOKENS, MemoryPlan, StepSize, plan_memory


def plan(
    model: Annotated[Path, typer.Argument(help="Folder of an artifact or of a checkpoint.")],
    memory: Annotated[str, typer.Option("--memory", help="All there is, such as 24GiB or 500MB.")],
    max_model_len: Annotated[
        int | None, typer.Option("--max_model_len", help="Longest sequence. Default: the model's context.")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option("--dtype", help=f"Of weights and KV: {', '.join(ITEM_BYTES)}. Default: the model's."),
    ] = None,
    page_size: Annotated[int, typer.Option("--page_size", help="Tokens of a KV page.")] = 16,
    max_tokens_per_step: Annotated[
        int | None,
        typer.Option(
            "--max_tokens_per_step", help="Rows of the largest step. Default: 512, and 8192 with cuda."
        ),
    ] = None,
    max_sequences: Annotated[
        int, typer.Option("--max_sequences", help="Most requests that run at once.")
    ] = 64,
    device: Annotated[
        str,
        typer.Option("--device", help="cpu, or cuda: what a start of inductor on a GPU makes of the memory."),
    ] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what fits a given memory, from configs and headers alone."""
    total = parse_memory(memory)
    for name, value in (
        ("max_model_len", max_model_len),
        ("page_size", page_size),
        ("max_tokens_per_step", max_tokens_per_step),
        ("max_sequences", max_sequences),
    ):
        if value is not None and value < 1:
            raise PlanError(f"{name} is {value}; it must be at least 1")
    check_device(device)
    shape = ModelShape.of(model.expanduser())
    step = StepSize(max_tokens_per_step or STEP_TOKENS[device], max_sequences)
    made = plan_shape(shape, total, max_model_len, dtype, page_size, step, device)
    made.check()
    if as_json:
        typer.echo(json.dumps({"device": device, **_figures(shape, made, dtype or shape.dtype)}))
    else:
        Console().print(_table(shape, made, dtype or shape.dtype))
        if device == "cpu" and (dtype or shape.dtype) != "float32":
            typer.echo("The CPU engines compute in float32: for them, plan with --dtype float32.")


def check_device(device: str) -> None:
    """Raises PlanError for one that nothing is planned for."""
    if device not in STEP_TOKENS:
        raise PlanError(f"device is {device!r}; give {' or '.join(STEP_TOKENS)}")


def plan_shape(
    shape: ModelShape,
    memory: int,
    max_model_len: int | None = None,
    dtype: str | None = None,
    page_size: int = 16,
    step: StepSize | None = None,
    device: str = "cpu",
) -> MemoryPlan:
    """The memory plan of a model on "cpu" or "cuda".

    Raises PlanError for a dtype, length or device that it cannot have.
    """
    check_device(device)
    if device == "cuda" and shape.quantized_bytes is not None:
        raise PlanError(
            f"device is {device}, and {shape.source} is quantised: what is runs on the CPU; leave device away"
        )
    if dtype is not None and dtype not in ITEM_BYTES:
        raise PlanError(f"dtype {dtype} is not known; dtypes are {', '.join(ITEM_BYTES)}")
    if shape.quantized_bytes is not None and dtype not in (None, shape.dtype):
        raise PlanError(
            f"dtype is {dtype}, and {shape.source} is quantised and computes in {shape.dtype}; leave it out"
        )
    if max_model_len is not None and max_model_len > shape.context:
        raise PlanError(f"max_model_len is {max_model_len}; the model's context has {shape.context} tokens")
    return plan_memory(
        memory=memory,
        parameters=shape.parameters,
        specs=shape.layers,
        hidden=shape.hidden,
        intermediate=shape.intermediate,
        vocab=shape.vocab,
        dtype=dtype or shape.dtype,
        max_model_len=max_model_len or shape.context,
        page_size=page_size,
        step=step,
        quantized_bytes=shape.quantized_bytes,
        device=device,
    )


def _figures(shape: ModelShape, made: MemoryPlan, dtype: str) -> dict[str, object]:
    return {
        "model": shape.source,
        "architecture": shape.architecture,
        "dtype": dtype,
        "parameters": shape.parameters,
        "layers": len(shape.layers),
        "windows": [spec.window for spec in shape.layers],
        "memory_bytes": made.memory,
        "weights_bytes": made.weights,
        "quantized": shape.quantized_bytes is not None,
        "activations_bytes": made.activations,
        "reserved_bytes": made.reserved,
        "kv_bytes": made.kv_bytes,
        "kv_bytes_per_token": made.kv_bytes_per_token,
        "page_size": made.page_size,
        "pages": made.pages,
        "tokens": made.tokens,
        "max_model_len": made.max_model_len,
        "requests": made.requests,
    }


def _table(shape: ModelShape, made: MemoryPlan, dtype: str) -> Table:
    table = Table(title=f"{shape.source}: {shape.architecture}, {len(shape.layers)} layers, {dtype}")
    table.add_column("")
    table.add_column("bytes", justify="right")
    table.add_column("")
    quantized = ", quantised" if shape.quantized_bytes is not None else ""
    reserved = [("kept free", mib(made.reserved), "for graphs and buffers")] if made.reserved else []
    filled = ", more are never filled" if made.pages == made.most_pages else ""
    rows = [
        ("memory", mib(made.memory), ""),
        ("weights", mib(made.weights), f"{shape.parameters:,} parameters{quantized}"),
        ("activations", mib(made.activations), "at most, in the largest step"),
        *reserved,
        ("KV cache", mib(made.kv_bytes), f"{made.pages:,} pages of {made.page_size} tokens{filled}"),
        ("one token", f"{made.kv_bytes_per_token:,} B", _windows(shape)),
        ("tokens that fit", f"{made.tokens:,}", "of all requests together"),
        ("requests that fit", f"{made.requests:,}", f"of {made.max_model_len:,} tokens each"),
    ]
    for row in rows:
        table.add_row(*row)
    return table


def _windows(shape: ModelShape) -> str:
    windowed = [spec.window for spec in shape.layers if spec.window is not None]
    if not windowed:
        return "k and v in all layers"
    sizes = ", ".join(map(str, sorted(set(windowed))))
    return f"k and v in all layers; {len(windowed)} see {sizes} tokens, and keep all"
