"""How near to the limits of the machine the steps come."""

from __future__ import annotations

import statistics
from collections import deque

from cleave.export.artifact import Artifact
from cleave.kvcache.memory_plan import ITEM_BYTES
from cleave.kvcache.step import Chunk
from cleave.runtime.bench.counts import ModelShape
from cleave.runtime.bench.limits import Limits
from cleave.runtime.bench.probe import make_probe, products_in
from cleave.runtime.model import Model
from cleave.runtime.observer import StepReport

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
        self._products_in = products_in(model.engine, artifact)
        self._weight_item = ITEM_BYTES[model.engine.dtype]
        values = sum(2 * spec.kv_size for spec in artifact.manifest.layer_specs) * model.options.page_size
        self._kv_item = model.page_bytes // values
        self._recent: deque[float] = deque(maxlen=_STEPS)

    @classmethod
    def measured(cls, model: Model) -> LimitShare:
        """Measure the limits of the device that the engine computes on; takes a second or two, which should
        not be disturbed.

        Raises BenchError where the device has too little memory left.
        """
        probe = make_probe(model.engine, model.options.threads)
        try:
            return cls(model, probe.measure())
        finally:
            probe.close()

    def of(self, step: StepReport) -> float:
        """The percentage of one step."""
        chunks = [Chunk(chunk.sequence.id, chunk.start, chunk.count) for chunk in step.chunks]
        rows = max(1, step.generated_tokens)
        work = self._shape.work(chunks, rows, weight_item=self._weight_item, kv_item=self._kv_item)
        return 100 * self._limits.seconds(work, self._products_in) / step.seconds

    def lately(self, step: StepReport) -> float:
        """The median of this step and those that were asked for before it."""
        self._recent.append(self.of(step))
        return statistics.median(self._recent)
