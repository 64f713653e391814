"""A server on a real socket, for tests."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import uvicorn
from command import REPOSITORY

from cleave import AsyncLLM
from cleave.runtime.server.app import create_app
from cleave.runtime.server.lifecycle import Server, bind
from cleave.runtime.server.settings import ServerSettings

PATIENCE = 60.0
"""Seconds after which something that has to happen is said never to happen."""


def until(happened: Callable[[], bool]) -> None:
    """Wait for something that comes from another thread or process."""
    end = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.005)


class Served:
    """An artifact served by a thread of this process."""

    def __init__(
        self,
        artifact: Path,
        *,
        settings: dict[str, Any] | None = None,
        trace_provider: Any = None,
        **options: Any,
    ) -> None:
        self.settings = ServerSettings(port=0, **(settings or {}))
        self.llm = AsyncLLM(artifact, **options)
        self.app = create_app(self.llm, self.settings, trace_provider=trace_provider)
        self.service = self.app.state.service
        self.listener = bind(self.settings)
        config = uvicorn.Config(self.app, log_config=None, access_log=False, lifespan="off")
        self.server = Server(config, self.service)
        self.thread = threading.Thread(target=self.server.run, args=([self.listener],))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        self.thread.start()
        until(lambda: self.server.started)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.service.draining = True
        self.thread.join(PATIENCE)
        self.llm.close()
        self.listener.close()
        assert not self.thread.is_alive()

    def stats(self) -> dict[str, Any]:
        """GET /stats."""
        headers = {"Authorization": f"Bearer {self.settings.api_key}"} if self.settings.api_key else {}
        answer: dict[str, Any] = httpx.get(f"{self.url}/stats", headers=headers).raise_for_status().json()
        return answer

    def idle(self) -> None:
        """Wait until nothing is under way, and assert that no page is lost."""
        until(lambda: self.service.admission.requests == 0)
        until(lambda: self.llm.stats().running + self.llm.stats().waiting == 0)
        assert self.llm.stats().pages_used == 0
        assert self.service.admission.answers == 0


class ServedProcess:
    """`cleave serve` as a process of its own."""

    def __init__(self, *arguments: object, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "cleave", "serve", *map(str, arguments), "--port", "0"],
            cwd=REPOSITORY,
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.log: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> Self:
        self._reader.start()
        until(lambda: self.url is not None or self.process.poll() is not None)
        assert self.url is not None, self.log
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)

    @property
    def url(self) -> str | None:
        """Where it listens, once it does."""
        found = re.search(r"listening.*(http://[\d.]+:\d+)", "".join(self.log))
        return found[1] if found else None

    def ended(self) -> int:
        """The exit code, once it has ended."""
        code = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return code

    def entries(self) -> list[dict[str, Any]]:
        """Its log, where that is JSON."""
        return [json.loads(line) for line in self.log]

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)
