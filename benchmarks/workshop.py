"""What benchmarks make once and keep: checkpoints, artifacts, and the formats of peers."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from shapes import checkpoint

ROOT = Path(__file__).parent.parent
KEPT = ROOT / "benchmarks" / "out"
"""Git-ignored. For the 1.1B shape it grows to about 20 GB; delete it when you like."""


class Workshop:
    """The files of one shape, in a folder of its own. A file that was made halfway is never found."""

    def __init__(self, folder: Path, shape: str) -> None:
        """`folder` holds those of all shapes."""
        self._folder = folder / shape
        self._folder.mkdir(parents=True, exist_ok=True)
        self._shape = shape

    def kept(self, name: str, make: Callable[[Path], object]) -> Path:
        """What is called `name`; `make(path)` writes it, a file or a folder, where it is not there yet."""
        path = self._folder / name
        if not path.exists():
            with tempfile.TemporaryDirectory(dir=self._folder) as temporary:
                make(Path(temporary) / name)
                (Path(temporary) / name).replace(path)
        return path

    def checkpoint(self) -> Path:
        """The checkpoint of the shape; see `shapes.checkpoint`."""
        return checkpoint(self._shape, Path()) if self._shape == "demo" else self._random()

    def artifact(self, weights: str) -> Path:
        """The checkpoint exported with "float32", "int8" or "int4" weights, by the code as it is now."""
        name = f"artifact-{weights}-"
        current = name + sources("export", "plugins")
        for old in self._folder.glob(f"{name}*"):
            if old.name != current:
                shutil.rmtree(old)
        return self.kept(current, lambda folder: self._export(weights, folder))

    def _random(self) -> Path:
        return self.kept("checkpoint", lambda folder: checkpoint(self._shape, folder))

    def _export(self, weights: str, folder: Path) -> None:
        # Here, since it brings torch: a missing peer is said at once.
        from cleave.export.exporter import ExportRequest, export

        how = {"dtype": "float32"} if weights == "float32" else {"quantize": weights}
        export(ExportRequest(str(self.checkpoint()), folder, check=False, quality=False, **how))


def sources(*rooms: str) -> str:
    """A digest of the Python files of rooms, short enough for a file name."""
    digest = hashlib.sha256()
    for room in rooms:
        for file in sorted((ROOT / room).rglob("*.py")):
            digest.update(file.relative_to(ROOT).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:12]
