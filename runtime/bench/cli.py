"""`cleave bench`: the command line of the benchmarks."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from cleave.errors import BenchError
from cleave.runtime.bench import tables
from cleave.runtime.bench.latency import LatencyRequest, measure
from cleave.runtime.bench.latency import Progress as Report
from cleave.runtime.bench.machine import record
from cleave.runtime.bench.plot import check_plot, save_plot
from cleave.runtime.bench.ranges import Range, numbers
from cleave.runtime.cli_options import ArtifactFolder, Attention, Device, Engine, KvCacheBytes, Threads

bench = typer.Typer(
    help="How fast, and how far from what the machine can do.", no_args_is_help=True, add_completion=False
)

_Json = Annotated[
    Path | None, typer.Option("--json", help="Write figures, machine and versions to this file.")
]
_Plot = Annotated[Path | None, typer.Option("--plot", help="Draw to this file, .png or .html.")]


@bench.command()
def latency(
    artifact: ArtifactFolder,
    batch: Annotated[str, typer.Option("--batch", help="Batch sizes, by commas.")] = "1,2,4,8,16,32",
    prompt: Annotated[int, typer.Option("--prompt", help="Tokens of each prompt.")] = 512,
    output: Annotated[int, typer.Option("--output", help="Tokens generated for each.")] = 64,
    repetitions: Annotated[int, typer.Option("--repetitions", help="Runs, after one warm-up.")] = 5,
    engine: Engine = None,
    attention: Attention = None,
    device: Device = None,
    threads: Threads = None,
    json_file: _Json = None,
    plot: _Plot = None,
) -> None:
    """Prefill and decode of each batch size, without a scheduler."""
    check_outputs(json_file, plot)
    request = LatencyRequest(
        artifact,
        numbers("batch", batch),
        prompt,
        output,
        repetitions=repetitions,
        engine=engine,
        attention=attention,
        device=device,
        threads=threads,
    )
    with _bar() as report:
        figures = measure(request, report).figures("latency", request)
    _show(tables.phase_table(figures), figures, json_file, plot)


@bench.command()
def kvrun(
    artifact: ArtifactFolder,
    engine: Engine = None,
    attention: Attention = None,
    device: Device = None,
    threads: Threads = None,
    json_file: _Json = None,
    plot: _Plot = None,
) -> None:
    """The table of kv.run's README beside its published columns."""
    from cleave.runtime.bench.kvrun import run_kvrun

    check_outputs(json_file, plot)
    with _bar() as report:
        figures = run_kvrun(artifact, engine, attention, device, threads, report)
    _show(tables.kvrun_table(figures), figures, json_file, plot)


@bench.command()
def throughput(
    artifact: ArtifactFolder,
    requests: Annotated[int, typer.Option("--requests", help="How many, all at once.")] = 256,
    prompt: Annotated[str, typer.Option("--prompt", help="Tokens of a prompt, N or LOW:HIGH.")] = "100:1024",
    output: Annotated[str, typer.Option("--output", help="Tokens to generate, N or LOW:HIGH.")] = "100:1024",
    seed: Annotated[int, typer.Option("--seed", help="Draws lengths and tokens.")] = 0,
    shared_prefix: Annotated[
        int, typer.Option("--shared_prefix", help="Tokens that all prompts begin with, besides --prompt.")
    ] = 0,
    max_sequences: Annotated[
        int, typer.Option("--max_sequences", help="Most requests that run at once.")
    ] = 64,
    kv_cache_bytes: KvCacheBytes = None,
    engine: Engine = None,
    attention: Attention = None,
    device: Device = None,
    threads: Threads = None,
    json_file: _Json = None,
    plot: _Plot = None,
) -> None:
    """All requests at once through the whole LLM; end-of-sequence tokens are ignored."""
    from cleave.runtime.bench.throughput import ThroughputRequest, run_throughput

    check_outputs(json_file, plot)
    figures = run_throughput(
        ThroughputRequest(
            artifact,
            requests,
            Range.parse("prompt", prompt),
            Range.parse("output", output),
            seed,
            shared_prefix,
            engine,
            attention,
            device,
            threads,
            max_sequences,
            kv_cache_bytes,
        )
    )
    _show(tables.throughput_table(figures), figures, json_file, plot)


@bench.command()
def serve(
    url: Annotated[str, typer.Option("--url", help="The server, with or without /v1.")],
    requests: Annotated[int, typer.Option("--requests", help="How many.")] = 500,
    rate: Annotated[str, typer.Option("--rate", help="Requests a second (Poisson), or inf.")] = "inf",
    prompt: Annotated[str, typer.Option("--prompt", help="Words of a prompt, N or LOW:HIGH.")] = "512",
    output: Annotated[str, typer.Option("--output", help="Tokens to generate, N or LOW:HIGH.")] = "128",
    seed: Annotated[int, typer.Option("--seed", help="Draws arrivals, lengths and words.")] = 0,
    model: Annotated[
        str | None, typer.Option("--model", help="Default: the first one that the server lists.")
    ] = None,
    api: Annotated[str, typer.Option("--api", help="completions or chat.")] = "completions",
    tokenizer: Annotated[
        Path | None,
        typer.Option("--tokenizer", help="tokenizer.json or its folder: prompts are random token ids."),
    ] = None,
    max_concurrency: Annotated[
        int | None, typer.Option("--max_concurrency", help="Most requests at once; more wait.")
    ] = None,
    ignore_eos: Annotated[
        bool, typer.Option("--ignore_eos/--no_ignore_eos", help="Ask the server to go on after the end.")
    ] = True,
    api_key: Annotated[
        str | None, typer.Option("--api_key", help="Default: the environment's OPENAI_API_KEY.")
    ] = None,
    json_file: _Json = None,
    plot: _Plot = None,
) -> None:
    """A load on any OpenAI-compatible server: TTFT, TPOT, ITL, E2E as `vllm bench serve` defines them."""
    check_outputs(json_file, plot)
    from cleave.runtime.bench.client import Server
    from cleave.runtime.bench.serve import ServeRequest, run_serve

    if api not in ("completions", "chat"):
        raise BenchError(f"--api is {api!r}; it is completions or chat")
    server = Server(
        url,
        model,
        "completions" if api == "completions" else "chat",
        api_key or os.environ.get("OPENAI_API_KEY"),
        ignore_eos,
    )
    figures = run_serve(
        ServeRequest(
            server,
            requests,
            rate,
            Range.parse("prompt", prompt),
            Range.parse("output", output),
            seed,
            max_concurrency,
            tokenizer,
        )
    )
    lines = [*figures["notes"], *(f"failed: {error}" for error in figures["errors"])]
    _write(tables.serve_table(figures), lines, figures, json_file, plot)


def check_outputs(json_file: Path | None, plot: Path | None) -> None:
    """Raise BenchError or MissingPackage where the results could not be written, before they are made."""
    if json_file is not None and not json_file.parent.is_dir():
        raise BenchError(f"--json is {json_file}; there is no folder {json_file.parent}")
    check_plot(plot)


def _show(view: Table, figures: Mapping[str, Any], json_file: Path | None, plot: Path | None) -> None:
    _write(view, [tables.limits_line(figures), *tables.notes(figures)], figures, json_file, plot)


def _write(
    view: Table, lines: list[str], figures: Mapping[str, Any], json_file: Path | None, plot: Path | None
) -> None:
    console = Console()
    console.print(view)
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    if json_file is not None:
        kept = {key: value for key, value in figures.items() if key != "samples_ms"}
        json_file.write_text(json.dumps(record(kept), indent=1) + "\n", "utf-8")
    if plot is not None:
        save_plot(figures, plot)


@contextmanager
def _bar() -> Iterator[Report]:
    """A bar of the repetitions on stderr."""
    columns = (TextColumn("repetition"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    console = Console(stderr=True)
    quiet = not console.is_terminal  # a log would get an empty line
    bar = Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=quiet)
    with bar as progress:
        task = progress.add_task("", total=None)

        def report(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        yield report
