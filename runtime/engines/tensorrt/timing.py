"""What TensorRT measured of its kernels, kept beside the engine cache: later builds measure less."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from typing import Any


class TimingCache:
    """The timings of one TensorRT version on one GPU."""

    def __init__(self, folder: Path, version: str, device: str) -> None:
        name = "".join(letter if letter.isalnum() else "-" for letter in f"{version} {device}")
        self.path = folder / f"timing-{name}.cache"

    def attach(self, config: Any) -> None:
        """Give what is there to a build. What TensorRT does not take is measured again."""
        known = b""
        with contextlib.suppress(OSError):
            known = self.path.read_bytes()
        cache = config.create_timing_cache(known)
        if cache is None or not config.set_timing_cache(cache, False):
            config.set_timing_cache(config.create_timing_cache(b""), False)

    def keep(self, config: Any) -> None:
        """Keep what a build measured; a folder that cannot be written to costs time later, and no more."""
        cache = config.get_timing_cache()
        if cache is None:
            return
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=".timing-")
            with os.fdopen(handle, "wb") as file:
                file.write(bytes(cache.serialize()))
            Path(name).replace(self.path)
