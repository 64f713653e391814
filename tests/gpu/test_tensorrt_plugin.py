"""The plugin over device memory and streams that are not torch's own, with the kernels for GPUs.

TensorRT itself is not needed: its part is done by hand, with the stand-in for its module.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import tensorrt_stand_in
import torch
from plugin_driver import Driver

from cleave.kvcache.server import AttentionServer
from cleave.kvcache.spec import AttentionSpec, RopeSpec
from cleave.kvcache.step import Chunk
from cleave.plugins.tensorrt.host import Host, bound
from cleave.plugins.tensorrt.memory import CudaMemory

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
SPEC = AttentionSpec(32, 8, 128, 128**-0.5, RopeSpec("default", 1e4, 128))
TOLERANCE = {"float32": 3e-5, "float16": 4e-3, "bfloat16": 4e-2}
STEPS = {
    "prefill": ([(0, 300), (1, 65)],),
    "decode": ([(0, 40), (1, 17), (2, 129)], [(0, 1), (1, 1), (2, 1)], [(2, 1), (0, 1)]),
    "mixed": ([(0, 100), (1, 1)], [(1, 30), (0, 1), (2, 200)], [(0, 1), (2, 64), (1, 1)]),
}


@dataclass
class Side:
    """An attention server with how many tokens its sequences have."""

    backend: str
    dtype: str
    lengths: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.server = AttentionServer(
            [SPEC, SPEC],
            backend=self.backend,
            num_pages=80,
            max_position=1024,
            max_tokens=512,
            device="cuda",
            dtype=self.dtype,
        )

    def plan(self, step: list[tuple[int, int]]) -> None:
        chunks = []
        for sequence, count in step:
            if sequence not in self.lengths:
                self.server.open(sequence)
            start = self.lengths.setdefault(sequence, 0)
            chunks.append(Chunk(sequence, start, count))
        self.server.plan(chunks)

    def commit(self, step: list[tuple[int, int]]) -> None:
        self.server.commit()
        for sequence, count in step:
            self.lengths[sequence] += count


def rows(count: int, dtype: str, seed: int) -> list[torch.Tensor]:
    """q, k, v and an out full of NaN."""
    generator = torch.Generator("cuda").manual_seed(seed)
    widths = (SPEC.q_size, SPEC.kv_size, SPEC.kv_size)
    kind = getattr(torch, dtype)
    made = [torch.randn(count, width, generator=generator, device="cuda").to(kind) for width in widths]
    return [*made, torch.full((count, SPEC.q_size), torch.nan, dtype=kind, device="cuda")]


@pytest.fixture
def stream() -> Iterator[int]:
    """A stream that torch did not make, as TensorRT's own."""
    from cuda.bindings import runtime

    status, made = runtime.cudaStreamCreateWithFlags(runtime.cudaStreamNonBlocking)
    assert status == runtime.cudaError_t.cudaSuccess
    yield int(made)
    runtime.cudaStreamDestroy(made)


def wait(stream: int) -> None:
    torch.cuda.ExternalStream(stream).synchronize()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("kind", STEPS)
def test_it_gives_what_the_reference_attention_gives(kind: str, dtype: str, stream: int) -> None:
    driver, host = Driver(tensorrt_stand_in, CudaMemory()), Host()
    with bound(host):
        plugins = [driver.in_context(layer, SPEC) for layer in range(2)]
    own, truth = Side("triton", dtype), Side("reference", dtype)
    for number, step in enumerate(STEPS[kind]):
        torch.cuda.synchronize()
        with torch.cuda.stream(torch.cuda.ExternalStream(stream)):  # type: ignore[no-untyped-call]
            own.plan(step)  # its numbers are sent on the stream of the engine
        truth.plan(step)
        for layer, plugin in enumerate(plugins):
            tensors = rows(sum(count for _, count in step), dtype, seed=10 * number + layer)
            expected = torch.empty_like(tensors[3])
            torch.cuda.synchronize()
            with host.serving(own.server):
                driver.enqueue(plugin, *tensors, stream=stream)
            wait(stream)
            truth.server.run(layer, *tensors[:3], expected)
            torch.testing.assert_close(tensors[3], expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
        own.commit(step)
        truth.commit(step)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_captured_decode_step_is_replayed_for_other_sequences(dtype: str) -> None:
    """One graph with both layers, of five rows; later steps have fewer, and their other rows are zero."""
    driver, host = Driver(tensorrt_stand_in, CudaMemory()), Host()
    with bound(host):
        plugins = [driver.in_context(layer, SPEC) for layer in range(2)]
    side = Side("triton", dtype)
    prompts = [(sequence, 10 + 37 * sequence) for sequence in range(5)]
    side.plan(prompts)
    for layer in range(2):
        side.server.run(layer, *rows(sum(count for _, count in prompts), dtype, seed=layer))
    side.commit(prompts)
    buffers = [rows(5, dtype, seed=layer) for layer in range(2)]
    graphs: dict[Any, torch.cuda.CUDAGraph] = {}
    for number, sequences in enumerate(([0, 1, 2, 3, 4], [3, 0], [4, 2, 1])):
        step = [(sequence, 1) for sequence in sequences]
        given = [rows(5, dtype, seed=100 + 10 * number + layer) for layer in range(2)]
        side.plan(step)
        expected = []
        for layer, tensors in enumerate(given):
            side.server.run(layer, *tensors)
            expected.append(tensors[3].clone())
        for buffer, tensors in zip(buffers, given, strict=True):
            for target, source in zip(buffer[:3], tensors, strict=False):
                target.copy_(source)
            buffer[3].fill_(torch.nan)
        key = side.server.graph_key
        assert key is not None
        if key not in graphs:
            torch.cuda.synchronize()
            graphs[key] = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graphs[key]), host.serving(side.server):
                handle = torch.cuda.current_stream().cuda_stream
                for plugin, buffer in zip(plugins, buffers, strict=True):
                    driver.enqueue(plugin, *buffer, stream=handle)
        graphs[key].replay()
        torch.cuda.synchronize()
        for buffer, wanted in zip(buffers, expected, strict=True):
            assert torch.equal(buffer[3], wanted)
            assert not buffer[3][len(sequences) :].any()
        side.server.rollback()
    assert len(graphs) == 1


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_what_an_engine_is_built_with_can_be_captured_and_writes_zeros(dtype: str, stream: int) -> None:
    """As TensorRT does it while it times: on its own stream, and under capture with other streams barred."""
    from cuda.bindings import runtime

    plugin = Driver(tensorrt_stand_in, CudaMemory()).parsed(0, SPEC)
    driver = Driver(tensorrt_stand_in, CudaMemory())
    tensors = rows(7, dtype, seed=0)
    torch.cuda.synchronize()
    driver.enqueue(plugin, *tensors, stream=stream)
    wait(stream)
    assert not tensors[3].any()

    tensors[3].fill_(torch.nan)
    torch.cuda.synchronize()
    mode = runtime.cudaStreamCaptureMode.cudaStreamCaptureModeGlobal
    assert runtime.cudaStreamBeginCapture(stream, mode)[0] == runtime.cudaError_t.cudaSuccess
    driver.enqueue(plugin, *tensors, stream=stream)
    status, graph = runtime.cudaStreamEndCapture(stream)
    assert status == runtime.cudaError_t.cudaSuccess
    status, executable = runtime.cudaGraphInstantiate(graph, 0)
    assert status == runtime.cudaError_t.cudaSuccess
    assert tensors[3].isnan().all()
    runtime.cudaGraphLaunch(executable, stream)
    wait(stream)
    assert not tensors[3].any()
    runtime.cudaGraphExecDestroy(executable)
    runtime.cudaGraphDestroy(graph)


def test_tensors_share_the_memory_that_they_are_made_over() -> None:
    memory = CudaMemory()
    for dtype in TOLERANCE:
        own = rows(3, dtype, seed=1)[0]
        seen = memory.tensor(own.data_ptr(), (3, SPEC.q_size), dtype)
        assert seen.dtype == own.dtype
        assert seen.data_ptr() == own.data_ptr()
        assert torch.equal(seen, own)
        seen.zero_()
        assert not own.any()
