"""Triton's compiled kernels in the engine cache: a start in a new home folder compiles nothing."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import logging
import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cleave.errors import CacheError, reason
from cleave.export.artifact import BATCHFUL, Artifact
from cleave.runtime.engine_cache.cache import EngineCache
from cleave.runtime.engine_cache.key import EngineKey
from cleave.runtime.engines.cuda import cuda_is_usable
from cleave.runtime.engines.engine import engine_label

_log = logging.getLogger("cleave")
Kernels = dict[str, dict[str, bytes]]
"""Triton's hash, of all that a kernel's code depends on -> name of a file -> what is in it."""
_FILE = "kernels.zip"
"""Of it the entry HASH/NAME is a file of `Kernels`."""
_CACHE_VARIABLE = "TRITON_CACHE_DIR"
_KEPT = (".json", ".cubin")
"""What Triton needs of a kernel to launch it."""
_OWN = "cleave."
_ROOMS = ("kvcache/backends", "runtime/sampling/device", "runtime/engines/inductor")
"""Where kernels, and what chooses them, are written."""


@contextlib.contextmanager
def kept_kernels(artifact: Artifact, kind: str, device: str | None, cache: EngineCache) -> Iterator[None]:
    """Load a model of the engine `kind` in here: kernels that a start before this one has compiled are found.

    They are given to Triton's own cache, unless they are there already, and those that were compiled
    meanwhile are kept. Does nothing for a CPU, and where there is no GPU or Triton is not installed.
    """
    if kind == "onnxruntime" or device == "cpu" or not _has_triton():
        yield
        return
    key = _key(artifact)
    known = _restored(cache, key)
    with _used() as used:
        yield
    if used.keys() <= known.keys():
        return
    try:
        if cache.is_writable():
            _publish(cache, key, known | _read(used), engine_label(artifact))
    except (OSError, CacheError) as error:
        _log.warning("the kernels are not kept, and are compiled in every new home: %s", reason(error))


def _has_triton() -> bool:
    """Whether there is something to compile for; an engine that needs it says itself what is missing."""
    if not cuda_is_usable() or importlib.util.find_spec("triton") is None:
        return False
    import torch

    return torch.cuda.is_available()


def restore(file: Path) -> Kernels:
    """Give the kernels of an archive to Triton's cache; all that it has."""
    from triton.runtime.cache import get_cache_manager

    _settle()
    kernels: Kernels = {}
    with zipfile.ZipFile(file) as archive:
        for entry in archive.namelist():
            digest, _, name = entry.partition("/")
            kernels.setdefault(digest, {})[name] = archive.read(entry)
    for digest, files in kernels.items():
        metadata = next(name for name in files if name.endswith(".json"))
        manager = get_cache_manager(digest)
        there = manager.get_group(metadata) or {}
        if not files.keys() <= there.keys():
            placed = {name: manager.put(data, name) for name, data in files.items()}
            manager.put_group(metadata, placed)
    return kernels


def _restored(cache: EngineCache, key: EngineKey) -> Kernels:
    """What was kept, given to Triton; nothing where there is nothing, or it cannot be."""
    found = cache.find(key)
    if found is None:
        return {}
    with found:
        try:
            return restore(found.folder / _FILE)
        except (OSError, ValueError, StopIteration, zipfile.BadZipFile) as error:
            _log.warning("the kept kernels are not used: %s", reason(error))
            return {}


@contextlib.contextmanager
def _used() -> Iterator[dict[str, list[Path]]]:
    """Which of Cleave's kernels Triton compiles, or takes from its cache, in here: hash -> files."""
    from triton import knobs

    _settle()
    used: dict[str, list[Path]] = {}
    before = knobs.compilation.listener
    is_over = False

    def listen(
        *, src: Any, metadata: Mapping[str, Any], metadata_group: Mapping[str, str], **told: Any
    ) -> None:
        own = str(getattr(getattr(src, "fn", None), "module", "")).startswith(_OWN)  # Inductor keeps its own
        if own and not is_over:
            used[str(metadata["hash"])] = [
                Path(path) for name, path in metadata_group.items() if name.endswith(_KEPT)
            ]
        if before is not None:
            before(src=src, metadata=metadata, metadata_group=metadata_group, **told)

    knobs.compilation.listener = listen
    try:
        yield used
    finally:
        is_over = True
        # Another model that is being loaded may listen by now; it goes on, and passes on what it hears.
        if knobs.compilation.listener is listen:
            knobs.compilation.listener = before


def _read(used: Mapping[str, list[Path]]) -> Kernels:
    return {digest: {path.name: path.read_bytes() for path in files} for digest, files in used.items()}


def _publish(cache: EngineCache, key: EngineKey, kernels: Kernels, label: str) -> None:
    """Put an archive of these in the place of the one that there was."""

    def write(folder: Path) -> None:
        with zipfile.ZipFile(folder / _FILE, "w") as archive:
            for digest, files in sorted(kernels.items()):
                for name, data in files.items():
                    archive.writestr(f"{digest}/{name}", data)

    cache.remove([entry for entry in cache.entries() if entry.key == key])
    cache.get(key, write, label=label).close()


def _settle() -> None:
    """Inductor moves Triton's cache where nobody has said where it is: in the middle of a start, perhaps."""
    from triton import knobs

    os.environ.setdefault(_CACHE_VARIABLE, knobs.cache.dir)


def _key(artifact: Artifact) -> EngineKey:
    """Of all that the kernels of a model may depend on; Triton's hashes have the rest."""
    import torch
    import triton

    major, minor = torch.cuda.get_device_capability()
    graph = hashlib.sha256((artifact.folder / BATCHFUL).read_bytes())
    graph.update(repr(artifact.manifest.layer_specs).encode())
    return EngineKey(
        {
            "graph": graph.hexdigest(),
            "kind": "kernels",
            "kind_version": f"triton {triton.__version__}",
            "sources": _sources(),
            "device": torch.cuda.get_device_name(),
            "compute_capability": f"{major}.{minor}",
            "cuda": str(torch.version.cuda),
            "dtype": artifact.manifest.dtype,
        }
    )


def _sources() -> str:
    """A digest of the kernels' code."""
    root = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for room in _ROOMS:
        for file in sorted((root / room).glob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()
