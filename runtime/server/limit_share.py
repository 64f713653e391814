"""How near to the limits of the machine the steps come."""

from __future__ import annotations

import statistics
from collections import deque

from cleave.errors import EngineError
from cleave.export.artifact import Artifact
from cleave.kvcache.memory_plan import ITEM_BYTES
from cleave.kvcache.step import Chunk
from cleave.runtime.bench.counts import ModelShape
from cleave.runtime.bench.limits import CpuProbe, Limits
from cleave.runtime.model import Model
from cleave.runtime.observer import StepReport

_ON_THE_PROCESSOR = ("cpu", "onnx")
_STEPS = 10


class LimitShare:
    """The least time that steps could have taken, in percent of the time they took.

    What a step has to do is counted as the benchmarks count it (docs/measuring.md). A model that fits
    the processor's caches can come above 100, since the limit is that of memory.
    """

    def __init__(self, model: Model, limits: Limits) -> None:
        artifact = Artifact.open(model.folder, verify=False)
        self._shape = ModelShape.of(artifact)
        self._limits = limits
        self._dtype = model.engine.dtype
        self._weight_item = ITEM_BYTES[self._dtype]
        values = sum(2 * spec.kv_size for spec in artifact.manifest.layer_specs) * model.options.page_size
        self._kv_item = model.page_bytes // values
        self._recent: deque[float] = deque(maxlen=_STEPS)

    @classmethod
    def measured(cls, model: Model) -> LimitShare:
        """Measure the limits of this machine first, which takes a second or two and should not be disturbed.

        Raises EngineError where the model does not run on the processor.
        """
        if model.attention_backend not in _ON_THE_PROCESSOR:
            raise EngineError(
                "limits are those of the processor, where this model does not run; leave out --measure_limits"
            )
        probe = CpuProbe(model.options.threads)
        try:
            return cls(model, probe.measure())
        finally:
            probe.close()

    def of(self, step: StepReport) -> float:
        """The percentage of one step."""
        chunks = [Chunk(chunk.sequence.id, chunk.start, chunk.count) for chunk in step.chunks]
        rows = max(1, step.generated_tokens)
        work = self._shape.work(chunks, rows, weight_item=self._weight_item, kv_item=self._kv_item)
        return 100 * self._limits.seconds(work, self._dtype) / step.seconds

    def lately(self, step: StepReport) -> float:
        """The median of this step and those that were asked for before it."""
        self._recent.append(self.of(step))
        return statistics.median(self._recent)
