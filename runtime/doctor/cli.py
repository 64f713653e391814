"""`cleave doctor`: one paste for an issue, or for oneself."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from cleave.runtime.doctor.probe import probe
from cleave.runtime.doctor.report import as_dict, as_text


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what this machine has, and which engine kinds and attention backends are usable and why."""
    facts = probe()
    typer.echo(json.dumps(as_dict(facts), indent=1) if as_json else as_text(facts))
