"""`cleave serve`: the command line of the server."""

from __future__ import annotations

import sys
from typing import Annotated, Literal

import typer

from cleave.errors import MissingPackage
from cleave.runtime.cli_options import (
    ArtifactFolder,
    Attention,
    Deterministic,
    Device,
    Engine,
    KvCacheBytes,
    Threads,
)


def serve(
    artifact: ArtifactFolder,
    host: Annotated[str, typer.Option("--host", help="Address to listen on; 0.0.0.0: all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="Port to listen on; 0: any free one.")] = 8000,
    model_name: Annotated[
        str | None, typer.Option("--model_name", help="Name for clients. Default: the folder's.")
    ] = None,
    engine: Engine = None,
    attention: Attention = None,
    device: Device = None,
    threads: Threads = None,
    max_model_len: Annotated[
        int | None, typer.Option("--max_model_len", help="Longest prompt and answer together, in tokens.")
    ] = None,
    max_sequences: Annotated[int, typer.Option("--max_sequences", help="Answers that run at once.")] = 64,
    max_tokens_per_step: Annotated[
        int | None,
        typer.Option(
            "--max_tokens_per_step",
            help="Tokens of one step, prompts and answers together. Default: 512 (onnxruntime) or 8192.",
        ),
    ] = None,
    kv_cache_bytes: KvCacheBytes = None,
    deterministic: Deterministic = False,
    max_queue: Annotated[
        int, typer.Option("--max_queue", help="Answers that may wait; more are refused with 429.")
    ] = 256,
    max_body_bytes: Annotated[
        int, typer.Option("--max_body_bytes", help="Longest request body; 413 beyond.")
    ] = 2_000_000,
    api_key: Annotated[
        str | None,
        typer.Option(
            "--api_key", envvar="CLEAVE_API_KEY", help="What clients have to send.", show_envvar=True
        ),
    ] = None,
    drain_timeout: Annotated[
        float, typer.Option("--drain_timeout", help="Seconds to finish what runs after SIGTERM.")
    ] = 30.0,
    cors_origin: Annotated[
        list[str] | None, typer.Option("--cors_origin", help="Origin whose pages may call, repeatable.")
    ] = None,
    measure_limits: Annotated[
        bool,
        typer.Option("--measure_limits", help="Measure the machine first; /ui then shows the percentage."),
    ] = False,
    otlp_endpoint: Annotated[
        str | None,
        typer.Option("--otlp_endpoint", help="Send spans there: http://localhost:4318/v1/traces."),
    ] = None,
    log_format: Annotated[
        Literal["text", "json"], typer.Option("--log_format", help="One line an event, text or json.")
    ] = "text",
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], typer.Option("--log_level", help="Least level logged.")
    ] = "info",
    log_prompts: Annotated[
        bool, typer.Option("--log_prompts", help="Log prompts and answers, which may be private.")
    ] = False,
) -> None:
    """Serve an artifact over HTTP, in the dialects of OpenAI and of text-generation-inference."""
    try:
        from cleave.runtime.async_llm import AsyncLLM
        from cleave.runtime.server import lifecycle, logs
        from cleave.runtime.server.settings import ServerSettings
    except ModuleNotFoundError as error:
        raise MissingPackage(error.name or "fastapi", "server", "`cleave serve`") from None

    settings = ServerSettings(
        host=host,
        port=port,
        model_name=model_name,
        max_queue=max_queue,
        max_body_bytes=max_body_bytes,
        api_key=api_key,
        drain_timeout=drain_timeout,
        cors_origins=tuple(cors_origin or ()),
        measure_limits=measure_limits,
        otlp_endpoint=otlp_endpoint,
        log_prompts=log_prompts,
    )
    logs.configure(log_format, log_level)
    with lifecycle.bind(settings) as listener:
        llm = AsyncLLM(
            artifact,
            engine,
            attention=attention,
            device=device,
            threads=threads,
            max_model_len=max_model_len,
            max_sequences=max_sequences,
            max_tokens_per_step=max_tokens_per_step,
            kv_cache_bytes=kv_cache_bytes,
            deterministic=deterministic,
        )
        try:
            code = lifecycle.serve_model(llm, settings, listener)
        finally:
            llm.close()
    if code:
        sys.exit(code)
