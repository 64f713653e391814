"""`cleave run`: the command line of generation."""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from cleave.errors import RequestError
from cleave.runtime.cli_options import Attention, Deterministic, Device, Engine, Threads
from cleave.runtime.llm import LLM
from cleave.runtime.repl import Repl
from cleave.runtime.request import Completion, SamplingParams


def run(
    model: Annotated[Path, typer.Option("--model", help="Folder of the artifact.")],
    prompts: Annotated[
        list[str] | None, typer.Option("--input", help="Prompt, repeatable: all run as one batch.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option("--max_new_tokens", help="Most tokens to generate.")] = 64,
    engine: Engine = None,
    attention: Attention = None,
    device: Device = None,
    ignore_eos: Annotated[
        bool, typer.Option("--ignore_eos", help="Go on after an end-of-sequence token.")
    ] = False,
    threads: Threads = None,
    temperature: Annotated[
        float | None, typer.Option("--temperature", help="0 takes the likeliest token.")
    ] = None,
    top_k: Annotated[int | None, typer.Option("--top_k", help="Draw among so many tokens.")] = None,
    top_p: Annotated[
        float | None, typer.Option("--top_p", help="Draw among tokens of so much probability.")
    ] = None,
    min_p: Annotated[
        float | None, typer.Option("--min_p", help="Least probability, relative to the likeliest.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="The same seed draws the same tokens.")] = None,
    stop: Annotated[
        list[str] | None, typer.Option("--stop", help="End before this text, repeatable.")
    ] = None,
    answers: Annotated[int, typer.Option("--n", help="Answers to each prompt.")] = 1,
    chat: Annotated[bool, typer.Option("--chat", help="Talk, through the checkpoint's template.")] = False,
    system: Annotated[str | None, typer.Option("--system", help="System message, with --chat.")] = None,
    deterministic: Deterministic = False,
    no_build: Annotated[
        bool, typer.Option("--no_build", help="Fail, with the reason, where the engine is not in the cache.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object for each answer.")] = False,
) -> None:
    """Continue prompts with an artifact, or talk with it."""
    if chat and (prompts or as_json or answers != 1):
        raise RequestError("--chat reads from the terminal; it goes without --input, --json and --n")
    if system is not None and not chat:
        raise RequestError("--system needs --chat")
    if max_new_tokens < 1:
        raise RequestError(f"--max_new_tokens is {max_new_tokens}; it must be at least 1")
    texts = prompts or ["San Francisco is a"]
    params = SamplingParams(
        max_tokens=max_new_tokens,
        ignore_eos=ignore_eos,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        seed=seed,
        stop=stop,
        n=answers,
    )
    options = {
        "attention": attention,
        "device": device,
        "threads": threads,
        "deterministic": deterministic,
        "allow_build": not no_build,
    }
    with _load(model, engine, **options) as llm:
        if chat and not llm.model.chat.has_template:
            raise RequestError(f"{model} has no chat template; leave --chat out, and give a text by --input")
        if chat:
            with contextlib.suppress(ImportError):
                importlib.import_module("readline")  # gives `input` a history and arrow keys
            Repl(llm, params, system=system).run()
            return
        began = time.perf_counter()
        if len(texts) == 1 and answers == 1 and not as_json:
            tokens = _stream(llm, texts[0], params)
        else:
            completions = llm.generate(texts, params)
            for completion in completions:
                typer.echo(_json(completion) if as_json else f"{completion.prompt}{completion.text}")
            tokens = sum(len(completion.token_ids) for completion in completions)
        seconds = time.perf_counter() - began
    Console(stderr=True).print(
        f"{tokens} tokens in {seconds:.2f} s: {tokens / seconds:.0f} tokens/s "
        f"(prompts included; batch of {len(texts) * answers}, engine {llm.model.engine.kind})",
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
