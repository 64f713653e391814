"""A loaded model: artifact, engine, attention server and tokenizer, and the limits they set."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil

from cleave.errors import EngineError, RequestError, reason
from cleave.export.artifact import Artifact, Progress
from cleave.kvcache.budget import GPU_MEMORY_SHARE, mib, most_pages, page_bytes, pages_for
from cleave.kvcache.keys import PageKeys
from cleave.kvcache.memory_plan import ITEM_BYTES
from cleave.kvcache.server import AttentionServer
from cleave.runtime.backend_choice import backend_options, choose_backend
from cleave.runtime.chat import Chat, Message
from cleave.runtime.cuts import LEAST_ROWS
from cleave.runtime.device_tokens import device_tokens
from cleave.runtime.engine_cache.cache import EngineCache
from cleave.runtime.engines.engine import (
    Engine,
    EngineOptions,
    best_engine_kind,
    create_engine,
    device_engine,
)
from cleave.runtime.kept_kernels import kept_kernels
from cleave.runtime.model_options import ModelOptions, engine_options
from cleave.runtime.request import Prompt
from cleave.runtime.sampling import checks
from cleave.runtime.sampling.state import SamplingState
from cleave.runtime.sampling_params import SamplingDefaults, SamplingParams
from cleave.runtime.sequence import Sequence
from cleave.runtime.structured.compiler import GrammarCompiler
from cleave.runtime.tokenizer import Tokenizer
from cleave.runtime.warm_up import warm_up

_log = logging.getLogger("cleave")
_MEMORY_SHARE = 0.25


class Model:
    """An artifact, ready to run on this machine."""

    def __init__(self, folder: str | Path, options: ModelOptions, progress: Progress | None = None) -> None:
        """Load an artifact. Raises ArtifactError, EngineError, CacheError, AttentionError, MissingPackage."""
        checking = progress and _telling("checking", progress)
        artifact = Artifact.open(folder, verify=options.verify, progress=checking)
        manifest = artifact.manifest
        self.folder, self.dtype = artifact.folder, manifest.dtype
        self.options = options
        self.max_length = self._bounded_length(manifest.max_position)
        self.tokenizer = Tokenizer(artifact.tokenizer_file, manifest.vocab_size)
        self.eos_token_ids = artifact.eos_token_ids
        self.chat = Chat(artifact)
        self.sampling_defaults = SamplingDefaults.from_generation_config(artifact.generation_config)
        kind = options.engine or best_engine_kind(artifact)
        chosen = engine_options(kind, options, self.max_length)
        cache = EngineCache(options.cache)
        with ExitStack() as made:
            self.grammars = GrammarCompiler(self.tokenizer, self.eos_token_ids, threads=options.threads)
            made.callback(self.grammars.close)
            with kept_kernels(artifact, kind, chosen.device, cache):
                self.engine: Engine = create_engine(
                    kind,
                    artifact,
                    chosen,
                    cache=cache,
                    allow_build=options.allow_build,
                    progress=progress and _telling("building", progress),
                )
                made.callback(self.engine.close)
                for note in self.engine.notes:
                    _log.warning("%s", note)
                self._complete(artifact, chosen, made)
            made.pop_all()

    def _complete(self, artifact: Artifact, chosen: EngineOptions, made: ExitStack) -> None:
        """Make what stands beside the engine; `made` closes what there is of it where this raises."""
        manifest, options, rows = artifact.manifest, self.options, chosen.max_tokens
        self.device_tokens = device_tokens(self.engine, manifest.vocab_size, chosen)
        """What chooses tokens where the engine leaves logits on a device; None where the host does."""
        if self.device_tokens is not None:
            made.callback(self.device_tokens.close)
        self.page_bytes = page_bytes(manifest.layer_specs, options.page_size, ITEM_BYTES[self.engine.dtype])
        backend = choose_backend(
            options.attention,
            self.engine,
            manifest.layer_specs,
            self.max_length,
            rows,
            deterministic=options.deterministic,
        )
        self.has_fixed_cuts = options.deterministic and backend != "cpu"
        """Whether a token's bits depend on where its prompt was cut, and must not; see `fixed_cut`."""
        if self.has_fixed_cuts and rows <= LEAST_ROWS:
            raise EngineError(
                f"max_tokens_per_step is {rows}; with deterministic it must be at least {LEAST_ROWS + 1}"
            )
        self.attention = self._attention_server(backend, artifact, chosen)
        made.callback(self.attention.shutdown)
        self.max_tokens_per_step = rows
        on_device = device_engine(self.engine)
        if on_device is not None and on_device.batch_sizes:
            warm_up(on_device, self.attention, chosen.max_sequences)

    def _attention_server(self, backend: str, artifact: Artifact, chosen: EngineOptions) -> AttentionServer:
        """The server with this backend; with "triton" where FlashInfer fails and was not asked for."""
        options, pages = self.options, self._pages()

        def make(name: str) -> AttentionServer:
            self.attention_backend = name
            return AttentionServer(
                artifact.manifest.layer_specs,
                backend=name,
                num_pages=pages,
                page_size=options.page_size,
                max_position=self.max_length,
                max_tokens=chosen.max_tokens,
                **backend_options(
                    name, self.engine, artifact, options.threads, chosen.max_sequences, options.deterministic
                ),
            )

        try:
            return make(backend)
        except Exception as error:  # of another release of FlashInfer it can be any
            if options.attention is not None or backend != "flashinfer":
                raise
            _log.warning("attention is 'triton', since 'flashinfer' cannot be had: %s", reason(error))
        # Behind the handler: what has failed keeps its memory for as long as the error is there.
        return make("triton")

    def sequence(
        self,
        identifier: int,
        prompt: Prompt,
        params: SamplingParams,
        priority: int = 0,
        *,
        stream: int = 0,
    ) -> Sequence:
        """A sequence for a prompt, given as text or as token ids.

        `stream` is that of `SamplingState`. Raises RequestError for a prompt that is empty, too long for
        the context or for the KV cache, for ids out of the vocabulary, and for structured output that
        cannot be compiled: before anything is spent on it.
        """
        if not isinstance(prompt, str) and (isinstance(prompt, bytes) or not hasattr(prompt, "__len__")):
            raise RequestError(f"a prompt is text or a list of token ids, and not {prompt!r}")
        tokens = self.tokenizer.encode(prompt) if isinstance(prompt, str) else self.tokenizer.check(prompt)
        if len(prompt) == 0 or not tokens:
            raise RequestError("the prompt is empty; give at least one token")
        room = self.max_length - len(tokens)
        if room < 1:
            raise RequestError(
                f"the prompt has {len(tokens)} tokens; the context of {self.max_length} leaves room for at "
                f"most {self.max_length - 1} and one generated token"
            )
        max_tokens = room if params.max_tokens is None else min(room, params.max_tokens)
        stored = len(tokens) + max_tokens - 1
        needed = pages_for(stored, self.options.page_size)
        if needed > self.attention.num_pages:
            most = self.attention.num_pages * self.options.page_size - len(tokens) + 1
            raise RequestError(
                f"the request may grow to {stored} cached tokens, which need "
                f"{mib(needed * self.page_bytes)} of KV cache; there are "
                f"{mib(self.attention.num_pages * self.page_bytes)}: "
                + (f"lower max_tokens to {most} or less" if most > 0 else "give a shorter prompt")
                + ", or raise kv_cache_bytes"
            )
        stops = frozenset(params.stop_token_ids or ())
        if not params.ignore_eos:
            stops |= self.eos_token_ids
        sampling = self._sampling(params, tokens, stops, stream)
        # Pages that the prefix cache has are not computed, so there would be no logprobs of their tokens.
        # With fixed cuts its pages may have been computed otherwise than here.
        finds_prefix = (
            self.options.prefix_cache and params.prompt_logprobs is None and not self.has_fixed_cuts
        )
        keys = PageKeys(self.options.page_size) if finds_prefix else None
        return Sequence(identifier, tokens, max_tokens, stops, priority, keys, sampling=sampling)

    def _sampling(
        self,
        params: SamplingParams,
        prompt: tuple[int, ...],
        stops: frozenset[int],
        stream: int,
    ) -> SamplingState | None:
        """How the sequence is sampled; None for the likeliest token and nothing else."""
        vocab_size = self.tokenizer.vocab_size
        for name in ("logit_bias", "allowed_token_ids", "stop_token_ids"):
            checks.in_vocabulary(name, getattr(params, name) or (), vocab_size)
        words = [
            self.tokenizer.encode_words(space + word.lstrip(" "))
            for word in params.bad_words or ()
            for space in ("", " ")
        ]
        wanted = params.structured
        state = SamplingState(
            params.resolved(self.sampling_defaults),
            prompt,
            vocab_size,
            stop_token_ids=stops,
            bad_words=[word for word in words if word],
            constraint=None if wanted is None else self.grammars.constraint(wanted),
            stream=stream,
        )
        return None if state.is_plain else state

    def chat_prompt(
        self,
        messages: Seq[Message],
        tools: Seq[Mapping[str, Any]] | None = None,
        template_options: Mapping[str, Any] | None = None,
    ) -> tuple[int, ...]:
        """The tokens of a conversation, up to where the model's answer begins.

        Raises RequestError where the checkpoint has no chat template or the template refuses the messages.
        """
        text = self.chat.render(messages, tools, template_options)
        return self.tokenizer.encode(text, add_special_tokens=False)

    def close(self) -> None:
        """Give back memory and threads; each, also where another one fails."""
        with ExitStack() as last_to_first:
            last_to_first.callback(self.grammars.close)
            last_to_first.callback(self.attention.shutdown)
            if self.device_tokens is not None:
                last_to_first.callback(self.device_tokens.close)
            last_to_first.callback(self.engine.close)

    def _bounded_length(self, context: int) -> int:
        asked = self.options.max_model_len
        if asked is not None and asked > context:
            raise EngineError(f"max_model_len is {asked}; the model's context has {context} tokens")
        return asked or context

    def _pages(self) -> int:
        """Raises EngineError where not even one page fits."""
        options = self.options
        wanted = most_pages(options.max_sequences, self.max_length, options.page_size)
        if options.kv_cache_bytes is not None:
            pages = min(wanted, options.kv_cache_bytes // self.page_bytes)
            if pages < 1:
                raise EngineError(
                    f"kv_cache_bytes is {options.kv_cache_bytes}; "
                    f"one page of {options.page_size} tokens needs {self.page_bytes}"
                )
            return pages
        on_device = device_engine(self.engine)
        free_on_device = on_device.free_memory() if on_device is not None else None
        if free_on_device is None:
            share, free = "a quarter", int(psutil.virtual_memory().available * _MEMORY_SHARE)
        else:
            share, free = "nine tenths", int(free_on_device * GPU_MEMORY_SHARE)
        if free < self.page_bytes:
            raise EngineError(
                f"{share} of the free memory of {self.engine.device} is {mib(free)}, and one page of the KV "
                f"cache needs {mib(self.page_bytes)}; free some memory, lower max_tokens_per_step or set "
                "kv_cache_bytes"
            )
        return min(wanted, free // self.page_bytes)


def _telling(verb: str, progress: Progress) -> Progress:
    """Say also what is done with what is named."""
    return lambda name, done, total: progress(f"{verb} {name}", done, total)
