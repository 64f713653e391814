"""What every benchmark writes beside its figures: the machine, the date, the versions, the command."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import psutil

RESULTS = Path(__file__).parent / "results"


def save(name: str, figures: Any) -> Path:
    """Write results/NAME.json."""
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    record = {
        "command": " ".join(["python", *sys.argv]),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": {
            "processor": _processor(),
            "physical_cores": psutil.cpu_count(logical=False),
            "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
            "load_average_before": [round(load, 2) for load in os.getloadavg()],
        },
        "versions": {
            package: importlib.metadata.version(package)
            for package in ("cleave", "onnxruntime", "numba", "numpy", "torch", "transformers")
        }
        | {"python": platform.python_version()},
        "figures": figures,
    }
    path.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    return path


def _processor() -> str:
    """The model and the vector instructions, as Linux names them."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    fields = {key.strip(): value.strip() for key, value in fields.items()}
    known = ("avx2", "avx512f", "avx512_vnni", "amx_tile")
    vectors = [name for name in known if name in fields.get("flags", "").split()]
    return f"{fields.get('model name', platform.machine())} ({', '.join(vectors)})"
