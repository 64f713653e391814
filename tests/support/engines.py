"""Engine keys, and builds that are cheap and counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cleave.runtime.engine_cache.cache import EngineCache
from cleave.runtime.engine_cache.key import EngineKey

FIELDS: dict[str, Any] = {
    "graph": "a" * 64,
    "weights": "b" * 64,
    "kind": "onnxruntime",
    "kind_version": "1.30.0",
    "plugin_version": 1,
    "device": "avx512",
    "dtype": "float32",
    "profile": (("tokens", 1, 8, 64),),
    "flags": (),
    "threads": 2,
}


def engine_key(**changes: Any) -> EngineKey:
    """A key, with some fields changed."""
    return EngineKey(FIELDS | changes)


class Builder:
    """A build that writes the same two files whenever it is called, and counts its calls."""

    def __init__(self, size: int = 1000) -> None:
        self.calls = 0
        self.size = size

    def __call__(self, folder: Path) -> None:
        """Build."""
        self.calls += 1
        (folder / "middle.plan").write_bytes(bytes(self.size))
        (folder / "deep").mkdir()
        (folder / "deep" / "notes.json").write_text("{}", "utf-8")


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "cleave"]


def remains(cache: EngineCache) -> list[str]:
    """What is in the cache's folder, without locks."""
    return sorted(path.name for path in cache.directory.iterdir() if path.name != ".locks")
