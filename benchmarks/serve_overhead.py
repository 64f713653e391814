"""What HTTP and server-sent events cost: processor time of the server's process for each token, over that of
generating the same tokens without a server.

- `offline`: `LLM.generate` of all prompts, in a process that does nothing else;
- `loop`: the same prompts as streams of an `AsyncLLM`, read in one event loop;
- `completions`, `chat`: `cleave serve` in a process of its own, and a client in this one that does
  nothing but read until the streams end.

`main_thread` is the part of the main thread, which in a server is the event loop and thereby all of HTTP.
All ways take turns; figures are medians of their repetitions. Processor time counts every thread, in user
and in kernel mode, so waiting costs nothing and contention does.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import psutil
from record import save
from rich.console import Console
from rows import rows_table

from cleave.export.exporter import export
from cleave.export.request import ExportRequest

DEMO = Path(__file__).parent.parent / "model_files" / "demo"
GOAL_US = 150
WORKER = """
import asyncio, sys
from cleave import LLM, AsyncLLM, SamplingParams
from cleave.threads import own_process

own_process()  # as the command does
kind, artifact, streams, tokens = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
prompts = [f"Number {index} is" for index in range(streams)]
params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)

async def read(llm, prompt):
    async for _ in llm.stream(prompt, params):
        pass

async def read_all():
    async with AsyncLLM(artifact, verify=False, max_sequences=streams) as llm:
        print("ready", flush=True)
        while sys.stdin.readline():
            await asyncio.gather(*(read(llm, prompt) for prompt in prompts))
            print("done", flush=True)

if kind == "loop":
    asyncio.run(read_all())
else:
    with LLM(artifact, verify=False, max_sequences=streams) as llm:
        print("ready", flush=True)
        while sys.stdin.readline():
            llm.generate(prompts, params, progress=False)
            print("done", flush=True)
"""


class Worker:
    """A process that generates without a server, whenever it is told to."""

    def __init__(self, kind: str, artifact: Path, streams: int, tokens: int) -> None:
        command = [sys.executable, "-c", WORKER, kind, str(artifact), str(streams), str(tokens)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.measured = psutil.Process(self._process.pid)

    def __enter__(self) -> Self:
        self._expect("ready")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def run(self) -> None:
        """Generate everything once."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        self._expect("done")

    def _expect(self, word: str) -> None:
        assert self._process.stdout is not None
        said = self._process.stdout.readline().strip()
        if said != word:
            raise RuntimeError(f"the worker said {said!r} instead of {word!r}")


class ServedWorker:
    """`cleave serve`, and a client that does next to nothing."""

    def __init__(self, artifact: Path, streams: int, tokens: int) -> None:
        self._streams, self._tokens = streams, tokens
        arguments = ["serve", str(artifact), "--port", "0", "--log_format", "json"]
        arguments += ["--max_sequences", str(streams), "--log_level", "info"]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "cleave", *arguments], stderr=subprocess.PIPE, text=True
        )
        self.measured = psutil.Process(self._process.pid)
        self._port = 0

    def __enter__(self) -> Self:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            entry = json.loads(line)
            if entry["message"] == "listening":
                self._port = int(entry["url"].rpartition(":")[2])
                # Nobody reads the log any more; a pipe that is full would stop the server.
                subprocess.Popen(["cat"], stdin=self._process.stderr, stdout=subprocess.DEVNULL)
                return self
        raise RuntimeError("the server does not listen")

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()

    def way(self, kind: str) -> Callable[[], None]:
        """What generates everything once, in one of the forms."""
        bodies = [self._body(kind, f"Number {index} is") for index in range(self._streams)]
        return lambda: asyncio.run(self._ask_all(bodies))

    def _body(self, kind: str, prompt: str) -> bytes:
        same = {"max_tokens": self._tokens, "temperature": 0, "ignore_eos": True, "stream": True}
        if kind == "completions":
            path, body = "/v1/completions", {"prompt": prompt, **same}
        else:
            path, body = "/v1/chat/completions", {"messages": [{"role": "user", "content": prompt}], **same}
        content = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Type: application/json\r\n"
        return head.encode() + f"Content-Length: {len(content)}\r\n\r\n".encode() + content

    async def _ask_all(self, requests: list[bytes]) -> None:
        await asyncio.gather(*(self._ask(request) for request in requests))

    async def _ask(self, request: bytes) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        writer.write(request)
        head = await reader.readuntil(b"\r\n")
        if b" 200 " not in head:
            raise RuntimeError((head + await reader.read()).decode())
        while await reader.read(1 << 16):
            pass
        writer.close()


def processor_seconds(process: psutil.Process) -> float:
    """Processor time of a process so far, all threads."""
    times = process.cpu_times()
    return float(times.user + times.system)


def main_thread_seconds(process: psutil.Process) -> float:
    """Processor time of its main thread so far."""
    (main,) = [thread for thread in process.threads() if thread.id == process.pid]
    return float(main.user_time + main.system_time)


def measure(
    ways: dict[str, tuple[psutil.Process, Callable[[], None]]], tokens: int, repetitions: int
) -> dict[str, dict[str, list[float]]]:
    """Microseconds of processor time and tokens a second of every way, in turn."""
    found: dict[str, dict[str, list[float]]] = {name: {"us": [], "main": [], "rate": []} for name in ways}
    for repetition in range(repetitions + 1):
        for name, (process, run) in ways.items():
            before, main, began = (
                processor_seconds(process),
                main_thread_seconds(process),
                time.perf_counter(),
            )
            run()
            seconds = time.perf_counter() - began
            # The first time warms up.
            if repetition:
                found[name]["us"].append((processor_seconds(process) - before) / tokens * 1e6)
                found[name]["main"].append((main_thread_seconds(process) - main) / tokens * 1e6)
                found[name]["rate"].append(tokens / seconds)
    return found


def main() -> None:
    """Measure, print the table, write results/serve_overhead.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--no-save", action="store_true")
    arguments = parser.parse_args()
    total = arguments.streams * arguments.tokens
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        artifact = Path(temporary) / "demo"
        export(ExportRequest(str(DEMO), artifact, check=False))
        shape = (arguments.streams, arguments.tokens)
        offline = stack.enter_context(Worker("offline", artifact, *shape))
        loop = stack.enter_context(Worker("loop", artifact, *shape))
        served = stack.enter_context(ServedWorker(artifact, *shape))
        ways = {"offline": (offline.measured, offline.run), "loop": (loop.measured, loop.run)}
        for kind in ("completions", "chat"):
            ways[kind] = (served.measured, served.way(kind))
        found = measure(ways, total, arguments.repetitions)
    base = statistics.median(found["offline"]["us"])
    rows: list[dict[str, Any]] = []
    for name, figures in found.items():
        us = statistics.median(figures["us"])
        rows.append(
            {
                "way": name,
                "cpu_us_a_token": round(us, 1),
                "over_offline_us": round(us - base, 1),
                "main_thread_us": round(statistics.median(figures["main"]), 1),
                "spread_us": round(max(figures["us"]) - min(figures["us"]), 1),
                "tokens_per_second": round(statistics.median(figures["rate"])),
            }
        )
    title = f"{arguments.streams} streams of {arguments.tokens} tokens; goal: {GOAL_US} us a token"
    Console().print(rows_table(title, rows))
    if not arguments.no_save:
        figures = {
            "streams": arguments.streams,
            "tokens": arguments.tokens,
            "repetitions": arguments.repetitions,
            "goal_us": GOAL_US,
            "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
            "rows": rows,
        }
        save("serve_overhead", figures)


if __name__ == "__main__":
    main()
