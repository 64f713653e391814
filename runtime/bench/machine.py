"""The machine and the versions that figures belong to."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import sys
from pathlib import Path
from typing import Any

import psutil

from cleave.runtime.engines.processor import processor

PACKAGES = (
    "cleave",
    "onnxruntime",
    "numba",
    "numpy",
    "torch",
    "transformers",
    "llama-cpp-python",
    "onnxruntime-genai",
    "vllm",
)


def record(figures: Any) -> dict[str, Any]:
    """What is written beside figures: the command, the date, the machine, the versions."""
    return {
        "command": command(sys.argv),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": {
            "processor": processor(),
            "physical_cores": psutil.cpu_count(logical=False),
            "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
            "load_average_before": [round(load, 2) for load in os.getloadavg()],
        },
        "versions": _versions() | {"python": platform.python_version()},
        "figures": figures,
    }


def command(arguments: list[str]) -> str:
    """The command line as one would type it: `cleave ...`, or `python SCRIPT ...`."""
    program = Path(arguments[0])
    is_cleave = program.name in ("cleave", "cleave.exe") or program.parts[-2:] == ("cleave", "__main__.py")
    return " ".join([*(["cleave"] if is_cleave else ["python", arguments[0]]), *arguments[1:]])


def _versions() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
