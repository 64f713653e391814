"""`cleave engines`: what is in the engine cache, why an engine is not, and how to make room."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from cleave.errors import CacheError
from cleave.export.artifact import Artifact
from cleave.runtime.cli_options import ArtifactFolder, BuildThreads, Device, RequiredEngine
from cleave.runtime.engine_cache.cache import EngineCache
from cleave.runtime.engine_cache.entry import Entry
from cleave.runtime.engine_cache.table import SHORT, as_json, table
from cleave.runtime.engines.cli import (
    ComputeCapability,
    Deterministic,
    MaxModelLen,
    MaxSequences,
    MaxTokens,
    builder_of,
)

engines = typer.Typer(help="The cache of built engines.", no_args_is_help=True)
_WIDE = 10_000


@engines.command("ls")
def ls(
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Read all files and compare their SHA-256; exit code 1 on damage."),
    ] = False,
    as_objects: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
) -> None:
    """List the engines, the one used last first."""
    cache = EngineCache()
    entries = cache.entries()
    damages = {entry.key.digest: cache.damage(entry) for entry in entries} if verify else None
    if as_objects:
        typer.echo(as_json(entries, damages))
    elif entries:
        _print(table(entries, damages))
        total = sum(entry.bytes for entry in entries)
        typer.echo(f"engines: {len(entries)}, {total:,} of {cache.max_bytes:,} bytes, in {cache.directory}")
    else:
        typer.echo(f"no engines in {cache.directory}")
    if damages is not None and any(damages.values()):
        raise typer.Exit(1)


@engines.command("why")
def why(
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
    """Say whether an engine would be reused; if not, which fields differ from the nearest one."""
    builder = builder_of(
        Artifact.open(artifact, verify=False),
        engine,
        compute_capability,
        device=device,
        max_model_len=max_model_len,
        max_tokens_per_step=max_tokens_per_step,
        max_sequences=max_sequences,
        threads=threads,
        deterministic=deterministic,
    )
    typer.echo(EngineCache().why(builder.key, accept=builder.serves))


@engines.command("rm")
def rm(
    digests: Annotated[
        list[str] | None, typer.Argument(help="Beginnings of digests, as `ls` shows them.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All engines.")] = False,
) -> None:
    """Remove engines; exit code 1 where one is in use."""
    if bool(digests) == everything:
        raise CacheError("give beginnings of digests, or --all; `cleave engines ls` shows them")
    cache = EngineCache()
    entries = cache.entries()
    if not entries and everything:
        typer.echo(f"no engines in {cache.directory}")
    chosen = entries if everything else [_find(entries, digest) for digest in digests or ()]
    in_use = False
    for removal in cache.remove(list(dict.fromkeys(chosen))) if chosen else ():
        short = removal.entry.key.digest[:SHORT]
        in_use |= not removal.is_gone
        state = f"removed, {removal.entry.bytes:,} bytes" if removal.is_gone else "in use, not removed"
        typer.echo(f"{short} ({removal.entry.key.kind}, {removal.entry.label}): {state}")
    if in_use:
        raise typer.Exit(1)


@engines.command("gc")
def gc(
    max_bytes: Annotated[
        int | None,
        typer.Option("--max_bytes", help="Evict down to this. Default: CLEAVE_CACHE_MAX_BYTES, else 64 GiB."),
    ] = None,
) -> None:
    """Remove what killed builds left, then the engines used longest ago until the rest fits."""
    leftovers, removals = EngineCache().gc(max_bytes)
    gone = sum(removal.entry.bytes for removal in removals)
    typer.echo(f"removed: leftovers {leftovers}, engines {len(removals)}, {gone:,} bytes")


def _find(entries: list[Entry], beginning: str) -> Entry:
    """The one entry whose digest begins so. Raises CacheError where there is none, or more than one."""
    found = [entry for entry in entries if entry.key.digest.startswith(beginning)]
    if len(found) == 1:
        return found[0]
    if not found:
        raise CacheError(f"no engine has a digest that begins with {beginning!r}; see `cleave engines ls`")
    raise CacheError(f"{len(found)} engines have digests that begin with {beginning!r}; give more digits")


def _print(drawn: object) -> None:
    """As wide as it needs where nobody looks: a pipe has no edge."""
    console = Console()
    console.print(drawn) if console.is_terminal else Console(width=_WIDE).print(drawn)
