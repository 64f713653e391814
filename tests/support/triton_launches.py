"""Attention steps whose kernels go to a driver that only writes down what it is told to launch.

Each launch is made twice, by the backend and by Triton's own way, which looks at every argument; what the
driver is told has to be the same. Prints how many launches there were, how many of the backend's had to
ask Triton, and how many of each kernel a hook heard of. For a process that is started without Triton's
interpreter.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from triton_compiler import pretend_hopper

from cleave.kvcache.server import AttentionServer
from cleave.kvcache.spec import AttentionSpec, RopeSpec
from cleave.kvcache.step import Chunk

SPECS = (
    AttentionSpec(4, 2, 16, 0.25, RopeSpec("default", 10_000.0, 16)),
    AttentionSpec(4, 2, 16, 0.25, None, window=21),
    AttentionSpec(4, 2, 16, 0.25, RopeSpec("default", 10_000.0, 16)),
)
STEPS = ((5, 1, 0), (1, 9, 0), (3, 4, 0), (0, 1, 2), (1, 1, 1), (1, 1, 1))
"""Tokens of three sequences, step after step."""


_METADATA = 6
"""Place of what is new for every launch: what Triton tells profilers of it. Their hook comes next."""


class Launches:
    """What the driver was told: kernels by number, grids and arguments."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.asked = 0
        """Launches of which Triton looked at every argument."""
        self._kernels = 0

    def load_binary(self, name: str, *_: Any) -> tuple[Any, ...]:
        """A handle of its own for every kernel that is compiled."""
        self._kernels += 1
        return f"module {self._kernels}", f"{name} {self._kernels}", 0, 0, 1024

    def get_device_properties(self, device: int) -> dict[str, int]:
        """Of a GPU that is large enough for all kernels."""
        return {"max_shared_mem": 1 << 18, "multiprocessor_count": 4}

    def launcher_cls(self, src: Any, metadata: Any) -> Callable[..., None]:
        """What Triton calls to launch one kernel."""

        def launch(*given: Any) -> None:
            given[_METADATA + 1](given[_METADATA])  # as the compiled launcher does
            told = [*given[:_METADATA], *given[_METADATA + 1 :]]
            self.told.append([one.data_ptr() if isinstance(one, torch.Tensor) else one for one in told])

        return launch


def tensors(spec: AttentionSpec, rows: int, way: int) -> tuple[torch.Tensor, ...]:
    """q, k, v and out as engines give them: apart, as columns, or aligned to nothing, by turns."""
    widths = (spec.q_size, spec.kv_size, spec.kv_size)
    if way == 0:
        parts = tuple(torch.zeros(rows, width, dtype=torch.float16) for width in widths)
    else:
        first = (0, 0, 8, 3)[way]
        whole = torch.zeros(rows, sum(widths) + (0, 0, 8, 8)[way], dtype=torch.float16)
        parts = whole[:, first : first + sum(widths)].split(widths, -1)
    out = torch.zeros(rows * spec.q_size + 1, dtype=torch.float16)[way == 3 :]
    return *parts, out[: rows * spec.q_size].view(rows, spec.q_size)


def main() -> None:
    """Run the steps."""
    pretend_hopper()
    import triton

    from cleave.kvcache.backends import triton as backend
    from cleave.kvcache.backends.triton_kernel import Kernel

    launches = Launches()
    heard: Counter[str] = Counter()
    triton.knobs.runtime.launch_enter_hook.add(lambda launch: heard.update([launch.get()["name"]]))
    driver = triton.runtime.driver.active
    driver.utils = launches
    driver.launcher_cls = launches.launcher_cls
    cpu = torch.device("cpu")
    backend.usable = lambda name, backend: cpu  # type: ignore[attr-defined]
    backend.resources = lambda device: (4, 1 << 18)  # type: ignore[attr-defined]
    run, launch = triton.JITFunction.run, Kernel.launch

    def asking(self: Any, *given: Any, **options: Any) -> Any:
        launches.asked += 1
        return run(self, *given, **options)

    def both(self: Kernel, grid: Any, layout: Any, *given: Any) -> None:
        launch(self, grid, layout, *given)
        run(self._function, *given, grid=grid, warmup=False, **self._meta)
        *_, own, triton_own = launches.told
        if own != triton_own:
            raise SystemExit(f"{self._function.__name__} was launched as {own}, by Triton as {triton_own}")

    triton.JITFunction.run = asking
    Kernel.launch = both  # type: ignore[method-assign]
    server = AttentionServer(
        SPECS, backend="triton", num_pages=8, max_position=64, max_tokens=32, device="cuda", dtype="float16"
    )
    for sequence in range(3):
        server.open(sequence)
    lengths = [0, 0, 0]
    asked = []
    for way in (*map(int, sys.argv[1:]),):
        for counts in STEPS:
            chunks = [(one, count) for one, count in enumerate(counts) if count]
            server.plan([Chunk(one, lengths[one], count) for one, count in chunks])
            for layer, spec in enumerate(SPECS):
                server.run(layer, *tensors(spec, sum(counts), way))
            server.rollback() if sum(lengths) > 60 else server.commit()
            for one, _ in chunks:
                lengths[one] = server.length(one)
        asked.append(launches.asked)
    print(json.dumps({"launches": len(launches.told) // 2, "asked": asked, "heard": heard}))


if __name__ == "__main__":
    main()
