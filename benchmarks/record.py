"""Where the results of benchmarks lie: results/NAME.json, each with machine, date, versions, command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cleave.runtime.bench.machine import record

RESULTS = Path(__file__).parent / "results"


def save(name: str, figures: Any) -> Path:
    """Write results/NAME.json."""
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record(figures), indent=1) + "\n", "utf-8")
    return path
