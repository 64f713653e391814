"""Pieces that ONNX Runtime has optimised and packed before: a faster start, and memory that can be shared."""

from __future__ import annotations

import json
import time
from pathlib import Path

import onnxruntime as ort
from rich.table import Table

from cleave.export.artifact import WEIGHTS, Artifact
from cleave.export.pieces import cut
from cleave.runtime.engine_cache.key import EngineKey
from cleave.runtime.engines.builder import BuildProgress, graph_digest
from cleave.runtime.engines.engine import EngineOptions
from cleave.runtime.engines.onnxruntime import make_session, saved_piece
from cleave.runtime.engines.onnxruntime_fusion import FUSION
from cleave.runtime.engines.processor import processor
from cleave.threads import physical_cores

_REPORT = "pieces.json"


class OnnxRuntimeBuilder:
    """See `cleave.runtime.engines.builder.EngineBuilder`.

    ONNX Runtime packs weights at every start, and only then compares them with the packed ones on disk. So
    an entry made elsewhere does no harm; it saves no time and no memory.
    """

    is_optional = True
    """A build takes dozens of starts to pay, and almost twice the weights on disk."""

    def __init__(self, artifact: Artifact, options: EngineOptions) -> None:
        """Cut the graph; nothing is loaded yet."""
        self._artifact = artifact
        self._threads = options.threads or physical_cores()
        self._pieces = cut(artifact.batchful_graph())
        self.key = EngineKey(
            {
                "graph": graph_digest(self._pieces),
                "weights": artifact.manifest.files[WEIGHTS].sha256,
                "kind": "onnxruntime",
                "kind_version": f"{ort.__version__}, fusion {FUSION}",
                "device": processor(),
                "dtype": "float32",
                "profile": ("any rows",),
            }
        )

    def serves(self, key: EngineKey) -> bool:
        """Weights are inside, so only what was built of just this artifact does."""
        return key == self.key

    def build(self, folder: Path, progress: BuildProgress | None) -> None:
        """See `EngineBuilder.build`: one session after the other, so that one piece is in memory."""
        report = []
        for index, piece in enumerate(self._pieces):
            began = time.monotonic()
            make_session(piece, self._artifact, self._threads, save_as=saved_piece(folder, index))
            report.append({"piece": index, "seconds": time.monotonic() - began})
            if progress is not None:
                progress(f"piece {index}", index + 1, len(self._pieces))
        (folder / _REPORT).write_text(json.dumps(report, indent=1) + "\n", "utf-8")

    def table(self, folder: Path) -> Table:
        """See `EngineBuilder.table`."""
        table = Table(title=f"onnxruntime {ort.__version__}, {processor()}", title_justify="left")
        table.add_column("piece")
        table.add_column("bytes", justify="right")
        table.add_column("seconds", justify="right")
        table.add_column("profile")
        for line in json.loads((folder / _REPORT).read_text("utf-8")):
            graph = saved_piece(folder, line["piece"])
            size = sum(path.stat().st_size for path in (graph, graph.with_suffix(".bin")) if path.exists())
            table.add_row(str(line["piece"]), f"{size:,}", f"{line['seconds']:.1f}", "any number of rows")
        return table
