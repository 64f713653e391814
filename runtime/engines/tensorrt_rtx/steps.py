"""Steps of an engine whose plans have profiles: what the kinds of TensorRT share."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cleave.errors import EngineError
from cleave.kvcache.memory_plan import SCORED_ROWS
from cleave.runtime.engines.engine import Attention, DeviceOutput
from cleave.runtime.engines.inductor.inputs import StepInputs, StepNumbers, check_rows
from cleave.runtime.engines.inductor.outputs import HostLogits, StepOutputs, first_rows
from cleave.runtime.engines.no_attention import NoAttention
from cleave.runtime.engines.release import release
from cleave.runtime.engines.tensorrt_rtx.profiles import Profiles

Tensor = torch.Tensor
_Array = npt.NDArray[Any]


class ProfiledSteps(ABC):
    """The part of a DeviceEngine that pads steps to profiles and brings numbers to the device and back.

    A step whose attention server offers a `graph_key` is padded to a decode bucket and captured; all others
    run in the prefill profile as they are.
    """

    def __init__(self, profiles: Profiles, vocab_size: int, device: torch.device) -> None:
        self._device = device
        self._profiles = profiles
        self._inputs = StepInputs(profiles.max_tokens, device)
        self._outputs = StepOutputs(self._inputs.sampled)
        self._stream = _new_stream(device)
        self._host_logits = HostLogits(vocab_size, device)

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """See `DeviceEngine`."""
        return self._profiles.buckets

    def run(self, token_ids: _Array, logit_rows: _Array, attention: Attention) -> _Array:
        """See `Engine.run`."""
        return self._host_logits.fetch(self.launch(token_ids, logit_rows, attention).logits)

    def launch(
        self,
        token_ids: _Array | Tensor,
        logit_rows: _Array,
        attention: Attention,
        sampled: Tensor | None = None,
    ) -> DeviceOutput:
        """See `DeviceEngine.launch`. Raises EngineError for a step that fits no profile."""
        tokens = len(token_ids)
        self._profiles.check(tokens)
        check_rows(logit_rows, tokens)
        key: Hashable | None = getattr(attention, "graph_key", None)
        number = self._profiles.bucket(tokens) if key is not None else None
        with self._own_stream():
            if number is None or key is None:
                given = self._inputs.send(token_ids, logit_rows, tokens, len(logit_rows), sampled)
                return self._step(self._profiles.prefill, given, attention)
            bucket = self._profiles.buckets[number]
            given = self._inputs.send(token_ids, logit_rows, bucket, bucket, sampled)
            output = self._captured(number, key, lambda: self._step(number, given, attention))
            return first_rows(output, len(logit_rows))

    def free_memory(self) -> int | None:
        """See `DeviceEngine.free_memory`: runs the largest step over an attention that does nothing."""
        if self._stream is None:
            return None
        tokens = self._profiles.max_tokens
        rows = min(tokens, self._profiles.max_sequences + SCORED_ROWS)
        try:
            self.launch(np.zeros(tokens, np.int64), np.arange(rows), NoAttention())
            torch.cuda.synchronize(self._device)
        except torch.OutOfMemoryError:
            raise EngineError(
                f"{self._device} has no room for a step of {tokens} tokens; lower max_tokens_per_step"
            ) from None
        free, _ = torch.cuda.mem_get_info(self._device)
        return int(free)

    def _release_steps(self) -> None:
        """Let go of what every step uses; the engine is not used afterwards."""
        release(self, "_inputs", "_outputs", "_host_logits")

    def _step(self, number: int, given: StepNumbers, attention: Attention) -> DeviceOutput:
        logits = self._forward(number, given.token_ids(), given.logit_rows, attention)
        return self._outputs.choose(logits)

    @abstractmethod
    def _forward(self, number: int, token_ids: Tensor, logit_rows: Tensor, attention: Attention) -> Tensor:
        """All layers in profile `number`: logits [rows, vocab] float32, in memory that the next call uses."""

    @abstractmethod
    def _captured(self, number: int, key: Hashable, step: Callable[[], DeviceOutput]) -> DeviceOutput:
        """The step of a bucket as a graph, where it can be captured."""

    @contextlib.contextmanager
    def _own_stream(self) -> Iterator[None]:
        """TensorRT and attention run on a stream of the engine's own, in order with the caller's.

        The caller's is often the default stream, which TensorRT would synchronise around.
        """
        if self._stream is None:
            yield
            return
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            current.wait_stream(self._stream)

    @property
    def _handle(self) -> int:
        """The stream under way, as TensorRT takes it: the engine's own, or that of a capture."""
        return 0 if self._stream is None else int(torch.cuda.current_stream(self._device).cuda_stream)


def _new_stream(device: torch.device) -> torch.cuda.Stream | None:
    """A stream of the engine's own; None on the host, which has none."""
    return torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
