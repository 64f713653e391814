"""`cleave run`: the command line of generation."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from cleave.runtime.llm import LLM
from cleave.runtime.request import Completion, SamplingParams


def run(
    model: Annotated[Path, typer.Option("--model", help="Folder of the artifact.")],
    prompts: Annotated[
        list[str] | None, typer.Option("--input", help="Prompt, repeatable: all run as one batch.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option("--max_new_tokens", help="Most tokens to generate.")] = 64,
    engine: Annotated[
        str | None, typer.Option("--engine", help="Engine kind. Default: the best that runs here.")
    ] = None,
    attention: Annotated[
        str | None,
        typer.Option("--attention", help="Attention backend: cpu, onnx, reference. Default: by the engine."),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option("--device", help="cpu, cuda or cuda:1. Default: what the engine is made for."),
    ] = None,
    ignore_eos: Annotated[
        bool, typer.Option("--ignore_eos", help="Go on after an end-of-sequence token.")
    ] = False,
    threads: Annotated[
        int | None, typer.Option("--threads", help="CPU threads. Default: the physical cores.")
    ] = None,
    no_build: Annotated[
        bool, typer.Option("--no_build", help="Fail, with the reason, where the engine is not in the cache.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object for each prompt.")] = False,
) -> None:
    """Continue prompts with an artifact."""
    texts = prompts or ["San Francisco is a"]
    params = SamplingParams(max_tokens=max_new_tokens, ignore_eos=ignore_eos)
    options = {"attention": attention, "device": device, "threads": threads, "allow_build": not no_build}
    with _load(model, engine, **options) as llm:
        began = time.perf_counter()
        if len(texts) == 1 and not as_json:
            tokens = _stream(llm, texts[0], params)
        else:
            completions = llm.generate(texts, params)
            for text, completion in zip(texts, completions, strict=True):
                typer.echo(_json(completion) if as_json else text + completion.text)
            tokens = sum(len(completion.token_ids) for completion in completions)
        seconds = time.perf_counter() - began
    Console(stderr=True).print(
        f"{tokens} tokens in {seconds:.2f} s: {tokens / seconds:.0f} tokens/s "
        f"(prompts included; batch of {len(texts)}, engine {llm.model.engine.kind})",
        highlight=False,
        soft_wrap=True,
    )


def _load(model: Path, engine: str | None, **options: Any) -> LLM:
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("")

        def report(what: str, done: int, total: int) -> None:
            progress.update(task, description=what, completed=done, total=total)

        return LLM(model, engine, progress=report, **options)


def _stream(llm: LLM, text: str, params: SamplingParams) -> int:
    """Print the prompt and then the answer as it comes; gives back the number of tokens."""
    count = 0
    for chunk in llm.stream(text, params):
        # The prompt comes with the first chunk: one that is refused is not printed at all.
        sys.stdout.write(chunk.text if count else text + chunk.text)
        sys.stdout.flush()
        count += len(chunk.token_ids)
    sys.stdout.write("\n")
    sys.stdout.flush()
    return count


def _json(completion: Completion) -> str:
    return json.dumps(
        {
            "prompt": completion.prompt,
            "text": completion.text,
            "token_ids": completion.token_ids,
            "finish_reason": completion.finish_reason,
        },
        ensure_ascii=False,
    )
