"""The table at the end of a build."""

from __future__ import annotations

from rich.table import Table

from cleave.runtime.engines.tensorrt_rtx.plan import EngineDescription


def table(engine: EngineDescription) -> Table:
    """Piece, bytes, seconds and profiles of every plan."""
    drawn = Table(title=f"TensorRT for RTX {engine.version}", title_justify="left")
    drawn.add_column("piece")
    for name in ("bytes", "seconds"):
        drawn.add_column(name, justify="right")
    drawn.add_column("compute capability")
    drawn.add_column("profiles (tokens)")
    gpus = ", ".join(engine.compute_capabilities)
    for piece in engine.pieces:
        drawn.add_row(piece.name, f"{piece.bytes:,}", f"{piece.seconds:.1f}", gpus, str(engine.profiles))
    total, seconds = (sum(getattr(piece, name) for piece in engine.pieces) for name in ("bytes", "seconds"))
    drawn.add_section()
    drawn.add_row("all", f"{total:,}", f"{seconds:.1f}", "", "")
    return drawn
