"""The live picture: what the engine is doing, a few times a second, for those who watch."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cleave.errors import EngineError
from cleave.kvcache.page_map import CACHED, FREE, SHARED
from cleave.runtime.async_llm import AsyncLLM
from cleave.runtime.engine_call import EngineState
from cleave.runtime.observer import AnswerReport, StepReport
from cleave.runtime.sequence import Sequence
from cleave.runtime.server.errors import Refused
from cleave.runtime.server.limit_share import LimitShare

_MOST_CELLS = 4096
_MOST_WAITING = 50
_BIN_SECONDS = 0.025
_KEPT_SECONDS = 2.0
_MOST_WATCHERS = 64
_FIRST_REQUEST = 3
"""Codes of cells: 0 free, 1 cached, 2 shared, and from here on the requests of the frame in order."""


@dataclass(slots=True)
class _Bin:
    """Consecutive steps that together are long enough to be seen."""

    began: float
    ended: float
    steps: int = 0
    prefill_tokens: int = 0
    decode_tokens: int = 0
    generated_tokens: int = 0


class Recorder:
    """The steps of the last seconds, written by the engine thread; an `EngineObserver`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bins: deque[_Bin] = deque(maxlen=int(_KEPT_SECONDS / _BIN_SECONDS))
        self._last: StepReport | None = None

    def stepped(self, step: StepReport) -> None:
        """See `EngineObserver`."""
        with self._lock:
            now = self._bins[-1] if self._bins else None
            if now is None or now.ended - now.began >= _BIN_SECONDS or step.ended - now.ended > _BIN_SECONDS:
                now = _Bin(step.ended - step.seconds, step.ended)
                self._bins.append(now)
            now.ended = step.ended
            now.steps += 1
            now.prefill_tokens += step.prefill_tokens
            now.decode_tokens += step.decode_tokens
            now.generated_tokens += step.generated_tokens
            self._last = step

    def answered(self, answer: AnswerReport) -> None:
        """See `EngineObserver`."""

    def recent(self, now: float) -> list[list[float]]:
        """[began, ended (ms), steps, prefill, decode and generated tokens] of each bin."""
        with self._lock:
            return [
                [
                    round(one.began * 1e3, 1),
                    round(one.ended * 1e3, 1),
                    one.steps,
                    one.prefill_tokens,
                    one.decode_tokens,
                    one.generated_tokens,
                ]
                for one in self._bins
                if now - one.ended < _KEPT_SECONDS
            ]

    @property
    def last(self) -> StepReport | None:
        """The last step."""
        return self._last


@dataclass(frozen=True, slots=True)
class _Look:
    """What is copied while the engine waits."""

    holders: npt.NDArray[np.int64]
    running: list[tuple[int, str, int, int, int]]
    """Sequence id, request id, tokens of the prompt, tokens in the cache, tokens generated."""
    waiting: list[tuple[tuple[int, int], int, str, int]]
    """Urgency, sequence id, request id, tokens."""


class Live:
    """Makes frames for any number of watchers, and does nothing while there is none.

    A watcher who lags gets the newest frame; the engine waits for nobody.
    """

    def __init__(
        self,
        llm: AsyncLLM,
        *,
        share: LimitShare | None = None,
        interval: float = 0.2,
        heartbeat: float = 5.0,
    ) -> None:
        """A frame every `interval` seconds while something happens, and every `heartbeat` seconds else."""
        self._llm = llm
        self._share = share
        self._interval = interval
        self._heartbeat = heartbeat
        self._recorder = Recorder()
        self._watchers = 0
        self._frame = b""
        self._next: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._over: str | None = None

    @property
    def watchers(self) -> int:
        """How many watch now."""
        return self._watchers

    def end(self, why: str) -> None:
        """Tell the watchers that nothing more comes, and why."""
        self._over = why

    def watch(self) -> AsyncIterator[bytes]:
        """Frames as server-sent events; they end with the event "end" where the server or the engine does.

        Raises Refused where too many watch already.
        """
        if self._watchers >= _MOST_WATCHERS:
            raise Refused("overloaded", f"{self._watchers} pages watch already; close another one")
        return self._frames()

    async def _frames(self) -> AsyncIterator[bytes]:
        self._enter()
        try:
            while self._task is not None and not self._task.done():
                if self._next is None:
                    self._next = asyncio.get_running_loop().create_future()
                await asyncio.wait((self._next, self._task), return_when=asyncio.FIRST_COMPLETED)
                yield self._frame
        finally:
            self._leave()

    def _enter(self) -> None:
        self._watchers += 1
        if self._watchers == 1:
            self._llm.observe(self._recorder)
            self._task = asyncio.create_task(self._run())

    def _leave(self) -> None:
        self._watchers -= 1
        if not self._watchers and self._task is not None:
            self._task.cancel()
            self._task = self._next = None
            self._llm.ignore(self._recorder)

    async def _run(self) -> None:
        seen, sent = None, 0.0
        while True:
            stats = self._llm.stats()
            if self._over is not None:
                self._publish(_end(self._over))
                return
            state = (stats.steps, stats.waiting, stats.pages_used, stats.pages_cached, self._watchers)
            if state != seen or time.monotonic() - sent > self._heartbeat:
                try:
                    frame = await self._make()
                except EngineError as error:
                    self._publish(_end(str(error)))
                    return
                seen, sent = state, time.monotonic()
                self._publish(b"data: " + json.dumps(frame, separators=(",", ":")).encode() + b"\n\n")
            await asyncio.sleep(self._interval)

    def _publish(self, frame: bytes) -> None:
        self._frame = frame
        waiting, self._next = self._next, None
        if waiting is not None:
            waiting.set_result(None)

    async def _make(self) -> dict[str, Any]:
        look = await self._llm.look(copy_of)
        stats, now = self._llm.stats(), time.monotonic()
        order = {sequence: code for code, (sequence, *_) in enumerate(look.running, _FIRST_REQUEST)}
        pages_per_cell, cells = cells_of(look.holders, order)
        look.waiting.sort()
        last = self._recorder.last
        share = self._share.lately(last) if self._share and last else None
        return {
            "running": look.running,
            "waiting": [entry[1:] for entry in look.waiting[:_MOST_WAITING]],
            "waiting_count": len(look.waiting),
            "pages": counts_of(look.holders),
            "page_size": stats.page_size,
            "pages_per_cell": pages_per_cell,
            "cells": cells,
            "batch": [[chunk.sequence.id, chunk.count] for chunk in last.chunks] if last else [],
            "percent_of_limit": None if share is None else round(share, 1),
            "steps": self._recorder.recent(now),
            "now": round(now * 1e3, 1),
            "prefix_hits": stats.cached_prompt_tokens,
            "preemptions": stats.preemptions,
        }


def _end(why: str) -> bytes:
    return b"event: end\ndata: " + json.dumps(why).encode() + b"\n\n"


def copy_of(state: EngineState) -> _Look:
    """What a frame needs, copied while the engine waits."""
    look = _Look(state.pages.map().holders, [], [])
    for generation, answer in state.answers.values():
        sequence: Sequence = answer.sequence
        if sequence.status == "running":
            prompt, output = len(sequence.prompt), len(sequence.output)
            look.running.append((sequence.id, generation.request_id, prompt, sequence.cached, output))
        elif sequence.status == "waiting":
            look.waiting.append((sequence.urgency, sequence.id, generation.request_id, sequence.length))
    return look


def counts_of(holders: npt.NDArray[np.int64]) -> list[int]:
    """Pages that are used, cached and free."""
    cached, free = int((holders == CACHED).sum()), int((holders == FREE).sum())
    return [len(holders) - cached - free, cached, free]


def cells_of(holders: npt.NDArray[np.int64], codes_of: dict[int, int]) -> tuple[int, list[int]]:
    """Pages per cell, and the cells as code, count, code, count, ...; `codes_of` is by sequence id.

    A cell that stands for several pages shows the first of them that is used, else one that is cached.
    """
    codes = np.zeros(len(holders), np.int32)
    codes[holders == CACHED] = 1
    used = holders > FREE
    codes[used] = [codes_of.get(holder, 2) for holder in holders[used].tolist()]
    codes[holders == SHARED] = 2
    per_cell = -(-len(codes) // _MOST_CELLS)
    if per_cell > 1:
        padded = np.zeros(-(-len(codes) // per_cell) * per_cell, np.int32)
        padded[: len(codes)] = codes
        codes = padded.reshape(-1, per_cell).max(axis=1)
    starts = np.flatnonzero(np.diff(codes, prepend=-1))
    counts = np.diff(starts, append=len(codes))
    return per_cell, np.stack((codes[starts], counts), axis=1).ravel().tolist()
