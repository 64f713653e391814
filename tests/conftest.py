"""Fixtures that all rooms share: checkpoints and artifacts, made once a session."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

if not torch.cuda.is_available():
    # Triton reads it when a kernel is defined, its own among them: transformers imports some.
    os.environ.setdefault("TRITON_INTERPRET", "1")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # So a shell starts what it runs in the background, and every process inherits it; tests interrupt some.
    signal.signal(signal.SIGINT, signal.default_int_handler)

from checkpoints import VARIANTS, make_checkpoint

from cleave.export.exporter import ExportRequest, export

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="session", autouse=True)
def engine_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The engine cache of all tests and of the processes that they start: never the user's own.

    `scripts/gpu_tests.py` gives one to several sessions.
    """
    shared = os.environ.get("CLEAVE_TESTS_CACHE")
    folder = Path(shared) if shared else tmp_path_factory.mktemp("engine_cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLEAVE_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The random checkpoint of a variant of `checkpoints.VARIANTS`. Read it, do not change it."""
    made: dict[str, Path] = {}

    def get(variant: str) -> Path:
        if variant not in made:
            family, changes = VARIANTS[variant]
            made[variant] = make_checkpoint(tmp_path_factory.mktemp(variant), family, **changes)
        return made[variant]

    return get


@pytest.fixture(scope="session")
def artifact(
    checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """The artifact of a variant. Read it, do not change it."""
    made: dict[str, Path] = {}

    def get(variant: str) -> Path:
        if variant not in made:
            folder = tmp_path_factory.mktemp(f"{variant}_artifact")
            export(ExportRequest(str(checkpoint(variant)), folder, check=False))
            made[variant] = folder
        return made[variant]

    return get


@pytest.fixture(scope="session")
def quantized_artifact(
    checkpoint: Callable[[str], Path], demo_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """The artifact of a variant, or of "demo", with options of `ExportRequest`. Read it, do not change it."""
    made: dict[tuple[object, ...], Path] = {}

    def get(variant: str, **options: Any) -> Path:
        key = (variant, *sorted(options.items()))
        if key not in made:
            folder = tmp_path_factory.mktemp(f"{variant}_quantized")
            source = demo_checkpoint if variant == "demo" else checkpoint(variant)
            # Random weights stand no rounding; `tests/export/test_quality.py` has the gate.
            export(ExportRequest(str(source), folder, check=False, quality=False, **options))
            made[key] = folder
        return made[key]

    return get


@pytest.fixture(scope="session")
def demo_checkpoint() -> Path:
    """The bundled demo checkpoint."""
    return REPOSITORY / "model_files" / "demo"


@pytest.fixture(scope="session")
def demo_artifact(demo_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo checkpoint's artifact."""
    folder = tmp_path_factory.mktemp("demo_artifact")
    export(ExportRequest(str(demo_checkpoint), folder, check=False))
    return folder
