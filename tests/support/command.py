"""Running `cleave` as a user does, and what a refusal has to look like."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from cleave.__main__ import main

REPOSITORY = Path(__file__).parent.parent.parent


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    def refused(self, *words: str) -> str:
        """Assert that it was refused as promised: exit code 2 and one sentence that has these words."""
        assert self.code == 2, self
        assert_one_sentence(self.err.removesuffix("\n"), "error: ", *words)
        assert self.out == ""
        return self.err


def assert_one_sentence(text: str, start: str, *words: str) -> None:
    """One line, with every one of `words` in it."""
    assert text.startswith(start), text
    assert text.strip() == text, repr(text)
    assert len(text.splitlines()) == 1, text
    assert "Traceback" not in text
    for word in words:
        assert word in text, f"{word!r} is not in {text!r}"


def cleave(*arguments: object) -> Ended:
    """The command in this process: fast, and the same function as the console command's."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    argv = ["cleave", *map(str, arguments)]
    with (
        mock.patch.object(sys, "argv", argv),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    return Ended(code, out.getvalue(), err.getvalue())


def process(command: Sequence[object], **environment: str) -> Ended:
    """A Python command in a process of its own, from the root of the repository."""
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=REPOSITORY,
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def contents(folder: Path) -> dict[str, bytes | None] | None:
    """Everything that is in a folder, to be compared; None where there is no folder."""
    if not folder.exists():
        return None
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }
