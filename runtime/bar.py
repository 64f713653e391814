"""A progress bar for long runs of generate."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cleave.runtime.collector import Collector

_PATIENCE = 2.0
_REFRESH = 0.2


class GenerationBar:
    """Waits for a collector, and shows how far it is where that takes long."""

    def __init__(self, collector: Collector, shown: bool | None) -> None:
        """`shown`: always, never, or None: after two seconds where standard error is a terminal."""
        self._collector = collector
        self._patience = 0.0 if shown else _PATIENCE
        self._allowed = sys.stderr.isatty() if shown is None else shown
        self._stack = ExitStack()

    def wait(self) -> None:
        """Return when every answer has ended."""
        if self._collector.wait(self._patience) or not self._allowed:
            while not self._collector.wait(60.0):
                pass
            return
        columns = (
            TextColumn("generating"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("answers, {task.fields[rate]:,.0f} tokens/s"),
            TimeRemainingColumn(),
        )
        bar = self._stack.enter_context(Progress(*columns, console=Console(stderr=True), transient=True))
        task = bar.add_task("", total=self._collector.answers, rate=0.0)
        began, before = time.monotonic(), self._collector.tokens
        is_over = False
        while not is_over:
            is_over = self._collector.wait(_REFRESH)
            rate = (self._collector.tokens - before) / (time.monotonic() - began)
            bar.update(task, completed=self._collector.ended, rate=rate)

    def __enter__(self) -> GenerationBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
