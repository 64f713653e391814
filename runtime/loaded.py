"""A loaded model with the thread that runs it: what `LLM` and `AsyncLLM` have in common."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cleave.export.artifact import Progress
from cleave.runtime.engine_thread import EngineThread
from cleave.runtime.generation import Generation
from cleave.runtime.intake import Intake
from cleave.runtime.mailbox import Mailbox
from cleave.runtime.model import Model
from cleave.runtime.model_options import ModelOptions
from cleave.runtime.request import Prompt, SamplingParams
from cleave.runtime.stats import Stats


class Loaded:
    """A model, its engine thread and its intake. It is closed at the latest when nobody holds it any more."""

    def __init__(
        self,
        artifact: str | Path,
        engine: str | None = None,
        *,
        progress: Progress | None = None,
        **options: Any,
    ) -> None:
        """Load the artifact in a folder, which blocks. `options` are those of `ModelOptions`.

        `progress` is called with what is done ("checking weights.safetensors", "building middle"), how much
        of it, and how much there is. Raises ArtifactError, EngineError, CacheError, AttentionError or
        MissingPackage.
        """
        self._model = Model(artifact, ModelOptions(engine=engine, **options), progress)
        try:
            self._thread = EngineThread(self._model)
        except BaseException:
            self._model.close()
            raise
        self._finalizer = weakref.finalize(self, _shut_down, self._thread, self._model)
        self._intake = Intake(self._model)

    @property
    def model(self) -> Model:
        """The engine, attention server and tokenizer behind it."""
        return self._model

    def abort(self, request_id: str) -> None:
        """Call a request off, which ends with the finish reason "abort".

        Raises RequestError where no request of that name is under way.
        """
        self._thread.abort(request_id)

    def stats(self) -> Stats:
        """What is running and waiting, the pages, and counts since the model was loaded."""
        return self._thread.stats()

    def close(self) -> None:
        """Call off what runs, give back memory and threads; waits for the step under way.

        It is not used afterwards.
        """
        self._finalizer()

    def _submit(
        self, prompt: Prompt, params: SamplingParams | None, request_id: str | None, priority: int
    ) -> tuple[Generation, Mailbox]:
        """Queue one prompt, and where its answers arrive. Raises RequestError where it is not allowed."""
        mailbox = Mailbox(self._model.options.max_unread_tokens)
        generation = self._intake.generation(
            prompt, params, mailbox, request_id=request_id, priority=priority
        )
        self._thread.submit([generation])
        return generation, mailbox

    def _discard(self, generations: Sequence[Generation]) -> None:
        for generation in generations:
            self._thread.discard(generation)


def _shut_down(engine_thread: EngineThread, model: Model) -> None:
    """End the thread, then what it uses."""
    engine_thread.close(then=model.close)
