"""`cleave compare`: where an engine is wrong."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cleave.errors import AttentionError, CompareError, EngineError
from cleave.export.artifact import Artifact
from cleave.kvcache.backend import backend_names
from cleave.runtime.cli_options import ArtifactFolder, Threads
from cleave.runtime.compare.report import as_json, table, verdict
from cleave.runtime.compare.suspects import suspects
from cleave.runtime.compare.tokens import tokens_for
from cleave.runtime.compare.variant import Variant, compare_all
from cleave.runtime.engines.kinds import engine_kinds


def compare(
    artifact: ArtifactFolder,
    engines: Annotated[
        str, typer.Option("--engines", help=f"Engine kinds, by commas: {', '.join(engine_kinds())}.")
    ] = "onnxruntime",
    attention: Annotated[
        str, typer.Option("--attention", help=f"Attention backends, by commas: {', '.join(backend_names())}.")
    ] = "cpu",
    checkpoint: Annotated[
        Path | None,
        typer.Option("--checkpoint", help="What it was exported from: transformers is the reference."),
    ] = None,
    tokens: Annotated[
        Path | None, typer.Option("--tokens", help="File of token ids. Default: 64 random ones.")
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option("--tolerance", help="Relative error allowed. Default: 1e-4 for float32, by dtype."),
    ] = None,
    threads: Threads = None,
    as_object: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Run the same tokens through engines and transformers; exit code 1 where they differ too much.

    Without --checkpoint the first engine with the first attention backend is the reference.
    """
    opened = Artifact.open(artifact)
    variants = [
        Variant(artifact, kind, backend, threads)
        for kind in _names(engines, engine_kinds(), "engine kind", EngineError)
        for backend in _names(attention, backend_names(), "attention backend", AttentionError)
    ]
    if checkpoint is None and len(variants) < 2:
        raise CompareError(
            f"{variants[0].name} alone has nothing to be compared with; give --checkpoint, or a second name "
            "in --engines or --attention"
        )
    token_ids = tokens_for(opened.manifest, tokens)
    comparisons = list(compare_all(opened, variants, checkpoint, token_ids, tolerance))
    weights = [suspects(opened, item.first) if item.first else () for item in comparisons]
    if as_object:
        found = [as_json(item, names) for item, names in zip(comparisons, weights, strict=True)]
        typer.echo(json.dumps({"tokens": token_ids, "comparisons": found}))
    else:
        console = Console()
        for item, names in zip(comparisons, weights, strict=True):
            console.print(table(item))
            console.print(verdict(item, names), highlight=False, soft_wrap=True)
    if not all(item.agrees for item in comparisons):
        raise typer.Exit(1)


def _names(
    given: str, known: Sequence[str], what: str, error: type[EngineError] | type[AttentionError]
) -> list[str]:
    """Names by commas, without repetitions. Raises `error` for one that is not known."""
    names = list(dict.fromkeys(name.strip() for name in given.split(",") if name.strip()))
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise error(f"there is no {what} {', '.join(unknown) or '(none)'}; there are: {', '.join(known)}")
    return names
