"""`cleave export`: the command line of the export."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from cleave.errors import ExportError, MissingPackage
from cleave.export.checkpoint import Checkpoint
from cleave.export.manifest import DTYPES, PARTS, Manifest
from cleave.export.quantization import METHODS
from cleave.export.request import ExportRequest


def export(
    model: Annotated[str, typer.Option("--model", help="Model directory or Hugging Face hub id.")],
    output_dir: Annotated[
        Path | None, typer.Option("--output_dir", help="Folder of the artifact, for example model_files/x.")
    ] = None,
    parts: Annotated[
        list[str] | None,
        typer.Option("--export", help=f"Part to export, repeatable: {', '.join(PARTS)}. Default: all."),
    ] = None,
    num_layers: Annotated[
        int | None, typer.Option("--num_layers", help="Take only the first layers.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option("--dtype", help=f"{', '.join(DTYPES)}. Default: the checkpoint's.")
    ] = None,
    device: Annotated[
        str, typer.Option("--device", help="Where --test and the check run: cpu, cuda.")
    ] = "cpu",
    check: Annotated[
        bool, typer.Option("--check/--no_check", help="Compare the graphs with transformers.")
    ] = True,
    quantize: Annotated[
        str | None,
        typer.Option("--quantize", help=f"Weights to {' or '.join(METHODS)}. Default: as they are."),
    ] = None,
    group_size: Annotated[
        int | None,
        typer.Option("--group_size", help="Inputs that share a scale in int4: 32, 64, 128. Default: 32."),
    ] = None,
    quantize_lm_head: Annotated[
        bool | None,
        typer.Option("--quantize_lm_head/--no_quantize_lm_head", help="lm_head too. Default: yes."),
    ] = None,
    quantize_embedding: Annotated[
        bool | None,
        typer.Option(
            "--quantize_embedding/--no_quantize_embedding", help="The embedding to int8. Default: no."
        ),
    ] = None,
    quality: Annotated[
        bool, typer.Option("--quality/--no_quality", help="Measure what quantising costs.")
    ] = True,
    calibration: Annotated[
        Path | None,
        typer.Option("--calibration", help="Text to measure on, UTF-8. Default: one that comes with Cleave."),
    ] = None,
    max_kl: Annotated[
        float | None,
        typer.Option("--max_kl", help="Largest KL divergence from float32, nats a token. Default: 0.1."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Export however large the divergence is.")] = False,
    test: Annotated[
        bool, typer.Option("--test", help="Export nothing; let plain transformers continue --input.")
    ] = False,
    text: Annotated[str, typer.Option("--input", help="Prompt for --test.")] = "San Francisco is a",
    max_new_tokens: Annotated[int, typer.Option("--max_new_tokens", help="For --test.")] = 64,
) -> None:
    """Cut a checkpoint at attention and write the artifact."""
    for package in ("torch", "transformers", "onnxscript"):
        if not _installed(package):
            raise MissingPackage(package, "export", "`cleave export`")
    if test:
        from cleave.export.plain import continue_text

        typer.echo(continue_text(model, text, max_new_tokens, num_layers, dtype, device))
        return
    if output_dir is None:
        raise ExportError("--output_dir is missing; give a folder for the artifact, such as model_files/x")
    request = ExportRequest(
        model,
        output_dir,
        tuple(parts or PARTS),
        num_layers,
        dtype,
        device=device,
        check=check,
        quantize=quantize,
        group_size=group_size,
        quantize_lm_head=quantize_lm_head,
        quantize_embedding=quantize_embedding,
        quality=quality,
        calibration=calibration,
        max_kl=max_kl,
        force=force,
    )
    checkpoint = Checkpoint.find(model)
    # Importing torch takes seconds: a mistake above is told before.
    from cleave.export.exporter import export as run

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
    quiet = not console.is_terminal  # a log would get a line for each bar
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True, disable=quiet) as progress:
        manifest = run(request, _Bars(progress).report, checkpoint)
    _summary(console, output_dir, manifest)


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ImportError:
        return False


class _Bars:
    """One bar for each kind of work."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    def report(self, what: str, done: int, total: int) -> None:
        """See `cleave.export.exporter.Report`."""
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(what, total=total)
        self._progress.update(self._tasks[what], completed=done, total=total)


def _weights(manifest: Manifest) -> str:
    return manifest.quantization.description if manifest.quantization else manifest.dtype


def _summary(console: Console, output_dir: Path, manifest: Manifest) -> None:
    size = sum(file.bytes for file in manifest.files.values())
    console.print(
        f"{output_dir}: {manifest.architecture}, {manifest.num_layers} layers, {_weights(manifest)}, "
        f"{size / 2**20:.1f} MiB",
        highlight=False,
        soft_wrap=True,
    )
    check: dict[str, Any] = manifest.check
    if "relative_error" in check:
        console.print(
            f"checked against transformers on {check['tokens']} tokens: relative error of the logits "
            f"{check['relative_error']:.1e}",
            highlight=False,
            soft_wrap=True,
        )
    elif "skipped" in check:
        console.print(f"not checked: {check['skipped']}", highlight=False, soft_wrap=True)
    if manifest.quality:
        console.print(_quality_table(manifest.quality))
    if manifest.missing_parts:
        console.print(f"still missing: {', '.join(manifest.missing_parts)}", highlight=False, soft_wrap=True)


def _quality_table(quality: Mapping[str, Any]) -> Table:
    """What quantising costs; see `cleave.export.quality.Quality`."""
    # The manifest has null for what is no number.
    quality = {name: math.nan if value is None else value for name, value in quality.items()}
    text = "the bundled text" if quality["text"] == "bundled" else quality["text"]
    table = Table(title=f"quality, on {quality['tokens']} tokens of {text}", title_justify="left", box=None)
    table.add_column("")
    table.add_column("quantised", justify="right")
    table.add_column("float32", justify="right")
    table.add_column("")
    perplexity = f"{quality['perplexity']:.3f}"
    if "kl" not in quality:
        table.add_row("perplexity", perplexity, "-", "the checkpoint has no float32 form to compare with")
        return table
    ratio = f"ratio {quality['perplexity_ratio']:.4f}"
    table.add_row("perplexity", perplexity, f"{quality['reference_perplexity']:.3f}", ratio)
    allowed = f"nats a token, +- {quality['kl_error']:.5f}; allowed {quality['max_kl']:g}"
    allowed += "" if quality["kl"] <= quality["max_kl"] else ", forced"
    table.add_row("KL divergence, mean", f"{quality['kl']:.5f}", "0", allowed)
    table.add_row("KL divergence, 99 %", f"{quality['kl_99']:.5f}", "0", "99 of 100 tokens are below")
    table.add_row("same next token", f"{quality['same_token']:.2%}", "", "the likeliest one")
    return table
