"""Ways to spoil a checkpoint or an artifact."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cleave.export.artifact import digest_file


def copy_of(folder: Path, to: Path) -> Path:
    """A copy that may be changed."""
    shutil.copytree(folder, to, dirs_exist_ok=True)
    return to


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a JSON file in place."""
    data = json.loads(path.read_text("utf-8"))
    change(data)
    path.write_text(json.dumps(data), "utf-8")


def alter_byte(path: Path) -> None:
    """Change one byte in the middle; the size stays."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def sign_again(artifact: Path, *names: str) -> None:
    """Give the manifest the digests that the files have now: a damage that digests cannot show."""

    def change(manifest: dict[str, Any]) -> None:
        for name in names:
            digest = digest_file(artifact / name)
            manifest["files"][name] = {"sha256": digest.sha256, "bytes": digest.bytes}

    edit_json(artifact / "manifest.json", change)


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (self._mark, "exploded"))


def write_bomb(path: Path, mark: Path) -> None:
    """A pickle that leaves `mark` behind if it is ever opened."""
    path.write_bytes(pickle.dumps(Bomb(mark)))
