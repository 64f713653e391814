"""Options that several verbs have: one name, one meaning, one help text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cleave.amounts import parse_kv_cache_bytes
from cleave.kvcache.backend import backend_names
from cleave.runtime.engines.kinds import engine_kinds
from cleave.threads import checked_threads

_KINDS = f"Engine kind: {', '.join(engine_kinds())}."
ArtifactFolder = Annotated[Path, typer.Argument(help="Folder of the artifact.")]
Engine = Annotated[str | None, typer.Option("--engine", help=f"{_KINDS} Default: the best that runs here.")]
RequiredEngine = Annotated[str, typer.Option("--engine", help=_KINDS)]
Attention = Annotated[
    str | None,
    typer.Option(
        "--attention", help=f"Attention backend: {', '.join(backend_names())}. Default: by the engine."
    ),
]
Device = Annotated[
    str | None, typer.Option("--device", help="cpu or cuda. Default: what the engine is made for.")
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        help="CPU threads, at most one a processor. Default: the physical cores that it may use.",
        callback=checked_threads,
    ),
]
BuildThreads = Annotated[
    int | None,
    typer.Option("--threads", help="CPU threads that it will run with. Default: the physical cores here."),
]
KvCacheBytes = Annotated[
    int | None,
    typer.Option(
        "--kv_cache_bytes",
        help="Memory of the KV cache: bytes, or with a unit, such as 10GiB. Default: what fits.",
        parser=parse_kv_cache_bytes,
        metavar="<bytes>",
    ),
]
Deterministic = Annotated[
    bool, typer.Option("--deterministic", help="The same bits whatever else is in the batch; slower.")
]
