"""The table at the end of a build."""

from __future__ import annotations

from rich.table import Table

from cleave.runtime.engines.tensorrt_rtx.plan import EngineDescription


def table(engine: EngineDescription) -> Table:
    """Piece, bytes, seconds and profiles of every plan."""
    title = f"TensorRT for RTX {engine.version}, compute capability {', '.join(engine.compute_capabilities)}"
    drawn = Table(title=title, title_justify="left")
    drawn.add_column("piece")
    for name in ("bytes", "seconds"):
        drawn.add_column(name, justify="right")
    drawn.add_column("profiles (tokens)")
    for piece in engine.pieces:
        drawn.add_row(piece.name, f"{piece.bytes:,}", f"{piece.seconds:.1f}", str(engine.profiles))
    total = sum(piece.bytes for piece in engine.pieces)
    drawn.add_section()
    drawn.add_row("all", f"{total:,}", f"{sum(piece.seconds for piece in engine.pieces):.1f}", "")
    return drawn
