"""`cleave build`: an engine ahead of time, into the engine cache."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from cleave.errors import EngineError
from cleave.export.artifact import Artifact
from cleave.runtime.cli_options import ArtifactFolder, BuildThreads, Device, RequiredEngine
from cleave.runtime.engine_cache.cache import EngineCache
from cleave.runtime.engine_cache.table import SHORT
from cleave.runtime.engines.builder import EngineBuilder, get_engine
from cleave.runtime.engines.engine import engine_builder, engine_label
from cleave.runtime.engines.kinds import check_engine_kind
from cleave.runtime.model_options import ModelOptions, engine_options

ComputeCapability = Annotated[
    str | None,
    typer.Option("--compute_capability", help="GPUs to build for: 8.6,8.9,12.0. Default: the one here."),
]
MaxModelLen = Annotated[
    int | None, typer.Option("--max_model_len", help="Longest sequence. Default: the model's context.")
]
MaxTokens = Annotated[
    int | None, typer.Option("--max_tokens_per_step", help="Rows of the largest step, as in serving.")
]
MaxSequences = Annotated[
    int, typer.Option("--max_sequences", help="Most requests that run at once, as in serving.")
]
Deterministic = Annotated[
    bool, typer.Option("--deterministic", help="For --deterministic of `cleave run` and `cleave serve`.")
]


def build(
    artifact: ArtifactFolder,
    engine: RequiredEngine,
    device: Device = None,
    compute_capability: ComputeCapability = None,
    max_model_len: MaxModelLen = None,
    max_tokens_per_step: MaxTokens = None,
    max_sequences: MaxSequences = 64,
    threads: BuildThreads = None,
    deterministic: Deterministic = False,
) -> None:
    """Build an engine ahead of time, so that `cleave run` and `cleave serve` find it in the cache."""
    check_engine_kind(engine)
    cache = EngineCache()
    opened = Artifact.open(artifact, verify=False)
    builder = builder_of(
        opened,
        engine,
        compute_capability,
        device=device,
        max_model_len=max_model_len,
        max_tokens_per_step=max_tokens_per_step,
        max_sequences=max_sequences,
        threads=threads,
        deterministic=deterministic,
    )
    cache.require_writable()
    columns = (
        TextColumn("building {task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(engine)

        def report(name: str, done: int, total: int) -> None:
            progress.update(task, description=name, completed=done, total=total)

        built = get_engine(builder, cache, label=engine_label(opened), progress=report)
    with built:
        Console().print(builder.table(built.folder))
        state = f"built in {built.seconds:.1f} s ({built.reason})" if built.was_built else built.reason
        typer.echo(f"{built.key.digest[:SHORT]}: {state}; {built.folder}")


def builder_of(
    artifact: Artifact, kind: str, compute_capability: str | None, **options: Any
) -> EngineBuilder:
    """The builder for options of `ModelOptions`.

    Raises EngineError for a kind that builds nothing ahead of time.
    """
    chosen = ModelOptions(engine=kind, **options)
    context = artifact.manifest.max_position
    if chosen.max_model_len is not None and chosen.max_model_len > context:
        raise EngineError(
            f"max_model_len is {chosen.max_model_len}; the model's context has {context} tokens"
        )
    length = chosen.max_model_len or context
    builder = engine_builder(kind, artifact, engine_options(kind, chosen, length, compute_capability))
    if builder is None:
        raise EngineError(
            f"the engine {kind} has no build step for {artifact.folder}: it is made when the model is "
            "loaded; just run it"
        )
    return builder
