"""Options that commands share: which engine runs an artifact, and how."""

from __future__ import annotations

from typing import Annotated

import typer

from cleave.kvcache.backend import backend_names

Engine = Annotated[
    str | None, typer.Option("--engine", help="Engine kind. Default: the best that runs here.")
]
Attention = Annotated[
    str | None,
    typer.Option(
        "--attention", help=f"Attention backend: {', '.join(backend_names())}. Default: by the engine."
    ),
]
Device = Annotated[
    str | None, typer.Option("--device", help="cpu or cuda. Default: what the engine is made for.")
]
Threads = Annotated[int | None, typer.Option("--threads", help="CPU threads. Default: the physical cores.")]
Deterministic = Annotated[
    bool, typer.Option("--deterministic", help="The same bits whatever else is in the batch; slower.")
]
