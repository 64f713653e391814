"""The progress bar of generate: what it shows, and when it keeps quiet."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from cleave import LLM, SamplingParams
from cleave.runtime import bar


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """Standard error as a terminal."""
    shown = io.StringIO()
    monkeypatch.setattr(
        bar, "Console", lambda **_: Console(file=shown, force_terminal=True, width=100, legacy_windows=False)
    )
    return shown


def test_a_bar_counts_answers_and_tokens(demo_artifact: Path, terminal: io.StringIO) -> None:
    with LLM(demo_artifact) as llm:
        params = SamplingParams(n=2, max_tokens=60, ignore_eos=True)
        answers = llm.generate([[0, 10 + index] for index in range(8)], params, progress=True)
    assert len(answers) == 16
    shown = terminal.getvalue()
    assert re.search(r"generating.*16/16.*answers, .*[1-9][\d,]* tokens/s", shown.splitlines()[-1] + shown)


@pytest.mark.parametrize("progress", [None, False])
def test_no_bar_for_what_is_quick_or_not_a_terminal(
    demo_artifact: Path, terminal: io.StringIO, progress: bool | None
) -> None:
    with LLM(demo_artifact) as llm:
        llm.generate([0, 10], SamplingParams(max_tokens=2), progress=progress)
        assert llm.generate([], progress=progress) == []
    assert terminal.getvalue() == ""
