"""What the engine inductor compiles ahead of time, for the engine cache."""

from __future__ import annotations

import hashlib
import importlib
import json
import time
from pathlib import Path

import torch
from rich.table import Table

from cleave.errors import EngineError
from cleave.export.artifact import Artifact
from cleave.runtime.engine_cache.key import EngineKey, Value
from cleave.runtime.engines.builder import BuildProgress, graph_digest
from cleave.runtime.engines.engine import EngineOptions
from cleave.runtime.engines.inductor.compiler import file_name
from cleave.runtime.engines.inductor.device import check_deterministic, check_device
from cleave.runtime.engines.inductor.functions import Functions
from cleave.runtime.engines.processor import processor

_REPORT = "functions.json"


class InductorBuilder:
    """See `cleave.runtime.engines.builder.EngineBuilder`. Weights are inputs of what is compiled."""

    is_optional = False

    def __init__(self, artifact: Artifact, options: EngineOptions) -> None:
        """Translate the pieces. Raises EngineError for what the engine cannot run; see InductorEngine."""
        if options.compute_capability is not None:
            raise EngineError(
                "the engine inductor is compiled for the device that it runs on; "
                "leave compute_capability away, and build it there"
            )
        self._device = check_device(options.device, artifact.manifest.dtype)
        if options.deterministic:
            check_deterministic(self._device, artifact.manifest.dtype)
        self._functions = Functions(artifact, self._device, deterministic=options.deterministic)
        dtype = artifact.manifest.dtype if self._device.type == "cuda" else "float32"
        sources = json.dumps(self._functions.sources, sort_keys=True)
        fields: dict[str, Value] = {
            "graph": graph_digest(self._functions.pieces),
            "programs": hashlib.sha256(sources.encode()).hexdigest(),
            "kind": "inductor",
            "kind_version": str(torch.__version__),
            **_device_fields(self._device),
            "dtype": dtype,
            "deterministic": options.deterministic,
            "profile": (
                "any rows",
                *(f"{rows} rows" for rows in self._functions.small),
                *(f"up to {band} rows" for band in self._functions.bands),
            ),
        }
        self.key = EngineKey(fields)

    def serves(self, key: EngineKey) -> bool:
        """Only what was compiled for just this does."""
        return key == self.key

    def build(self, folder: Path, progress: BuildProgress | None) -> None:
        """See `EngineBuilder.build`."""
        planned = self._functions.planned
        seconds: list[float] = []
        began = time.monotonic()

        def done(role: str, rows: int | None) -> None:
            seconds.append(time.monotonic() - began - sum(seconds))
            if progress is not None:
                progress(f"{role}, {_rows(rows)}", len(seconds), len(planned))

        self._functions.compile_all(folder, done)
        report = [
            {"piece": role, "rows": rows, "seconds": taken}
            for (role, rows), taken in zip(planned, seconds, strict=True)
        ]
        (folder / _REPORT).write_text(json.dumps(report, indent=1) + "\n", "utf-8")

    def table(self, folder: Path) -> Table:
        """See `EngineBuilder.table`."""
        table = Table(title=f"inductor, torch {torch.__version__}, {self._device}", title_justify="left")
        table.add_column("piece")
        table.add_column("bytes", justify="right")
        table.add_column("seconds", justify="right")
        table.add_column("profile")
        for line in json.loads((folder / _REPORT).read_text("utf-8")):
            file = folder / file_name(line["piece"], line["rows"])
            size = f"{file.stat().st_size:,}" if file.exists() else "none"
            table.add_row(line["piece"], size, f"{line['seconds']:.1f}", _rows(line["rows"]))
        return table


def _rows(rows: int | None) -> str:
    if rows is None:
        return "any number of rows"
    return "1 row" if rows == 1 else f"{rows} rows"


def _device_fields(device: torch.device) -> dict[str, Value]:
    """What code for a device depends on. Inductor writes a CPU's threads and a GPU's index into it."""
    if device.type == "cpu":
        vectors = torch.backends.cpu.get_cpu_capability()
        return {"device": processor(), "vectors": vectors, "threads": torch.get_num_threads()}
    major, minor = torch.cuda.get_device_capability(device)
    return {
        "device": torch.cuda.get_device_name(device),
        "device_index": device.index,
        "compute_capability": f"{major}.{minor}",
        "cuda": str(torch.version.cuda),
        "triton": str(importlib.import_module("triton").__version__),
    }
