"""`cleave bench serve`: the latencies of a server under load."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from cleave.errors import BenchError, reason
from cleave.runtime.bench.arrivals import asks, parse_rate
from cleave.runtime.bench.client import Client, Server
from cleave.runtime.bench.ranges import Range
from cleave.runtime.bench.serving import serving_figures


@dataclass(frozen=True, slots=True)
class ServeRequest:
    """What to send, and where to."""

    server: Server
    requests: int
    rate: str
    prompt: Range
    output: Range
    seed: int = 0
    max_concurrency: int | None = None
    tokenizer: Path | None = None
    """tokenizer.json, or a folder that has one: prompts are then random token ids of exact length."""


def run_serve(request: ServeRequest) -> dict[str, Any]:
    """Send the load and gather the figures.

    Raises BenchError where the server cannot be reached, or refuses every request.
    """
    rate = parse_rate(request.rate)
    if request.max_concurrency is not None and request.max_concurrency < 1:
        raise BenchError(f"--max_concurrency is {request.max_concurrency}; it must be at least 1")
    if request.tokenizer is not None and request.server.api == "chat":
        raise BenchError("--tokenizer sends token ids, which only --api completions takes")
    vocab = None if request.tokenizer is None else _vocab_size(request.tokenizer)
    load = asks(request.requests, rate, request.prompt, request.output, request.seed, vocab)
    client = Client(request.server, request.max_concurrency)
    model, timings, seconds = asyncio.run(client.run(load))
    if all(timing.error is not None for timing in timings):
        raise BenchError(f"all {len(timings)} requests failed; the first one: {timings[0].error}")
    return {
        "benchmark": "serve",
        "model": model,
        "url": request.server.url,
        "api": request.server.api,
        "requests": request.requests,
        "rate": request.rate,
        "prompt": str(request.prompt),
        "output": str(request.output),
        "seed": request.seed,
        "max_concurrency": request.max_concurrency,
        **serving_figures(timings, seconds),
        "notes": sorted(client.notes),
    }


def _vocab_size(path: Path) -> int:
    file = path / "tokenizer.json" if path.is_dir() else path
    try:
        size: int = Tokenizer.from_file(str(file)).get_vocab_size()
    except Exception as error:  # the library raises nothing more precise
        raise BenchError(f"{file} is not a tokenizer.json ({reason(error)})") from None
    return size
