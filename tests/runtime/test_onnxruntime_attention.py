"""Attention inside the pieces: the same bits as outside them, whatever happened to the step before."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import Ended, process
from crews import PARTS, Counter

from cleave.crew.borrowed import can_borrow
from cleave.errors import AttentionError
from cleave.kvcache.server import AttentionServer
from cleave.kvcache.spec import AttentionSpec
from cleave.kvcache.step import Chunk

needs_borrowing = pytest.mark.skipif(not can_borrow(), reason="ONNX Runtime lends no threads here")
PROCESS = """
    import sys
    import numpy as np
    from cleave.threads import own_process
    own_process()
    from cleave.kvcache.step import Chunk
    from cleave.runtime.model import Model, ModelOptions

    class Outside:
        def __init__(self, server, fails_at=None):
            self.server, self.fails_at, self.layers = server, fails_at, []
        def run(self, layer, q, k, v, out):
            self.layers.append(layer)
            if layer == self.fails_at:
                raise RuntimeError("this layer fails")
            self.server.run(layer, q, k, v, out)

    class Shown:
        def residual(self, layer, residual):
            pass

    model = Model(sys.argv[1], ModelOptions(threads=2, verify=False, max_model_len=256, max_sequences=8))
    engine, server = model.engine, model.attention
    layers = len(server.shape.specs)
    LENGTHS = (70, 1, 37, 5)

    def generate(attention):
        '''Logits of prompts in one step, in another one, and of ten steps of one token each.'''
        for name, length in enumerate(LENGTHS):
            server.open(name)
        found = []
        def step(chunks):
            count = sum(chunk.count for chunk in chunks)
            server.plan(chunks)
            tokens = np.random.default_rng(count).integers(0, 256, count)
            found.append(engine.run(tokens, np.arange(count), attention).copy())
            server.commit()
        step([Chunk(name, 0, length) for name, length in enumerate(LENGTHS)])
        step([Chunk(name, length, 3) for name, length in enumerate(LENGTHS)])
        for turn in range(3, 13):
            step([Chunk(name, length + turn, 1) for name, length in enumerate(LENGTHS)])
        for name, _ in enumerate(LENGTHS):
            server.close(name)
        return np.concatenate(found)
"""


def run(artifact: Path, code: str) -> Ended:
    """In a process of its own, which has one pool: what `code` does with `generate`."""
    return process(["-c", textwrap.dedent(PROCESS) + textwrap.dedent(code), artifact])


VARIANTS = ["gqa", "qwen3", "one_layer", "qwen2_mixed_windows"]


@needs_borrowing
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_step_has_the_same_bits_inside_and_outside(variant: str, artifact: Callable[[str], Path]) -> None:
    ended = run(
        artifact(variant),
        """
        server.run = None  # Python is not to come between two layers
        inside = generate(server)
        del server.run
        outside = Outside(server)
        np.testing.assert_array_equal(inside, generate(outside))
        assert outside.layers == list(range(layers)) * 12
        assert server.runs == 2 * 12 * layers, server.runs
        print("same")
        model.close()
        """,
    )
    assert (ended.code, ended.out) == (0, "same\n"), ended.err


@needs_borrowing
def test_rows_that_are_padded_are_nobodys(quantized_artifact: Callable[..., Path]) -> None:
    ended = run(
        quantized_artifact("demo", quantize="int4", group_size=64),
        """
        np.testing.assert_array_equal(generate(server), generate(Outside(server)))
        print("same")
        """,
    )
    assert (ended.code, ended.out) == (0, "same\n"), ended.err


@needs_borrowing
def test_after_a_step_that_failed_halfway_the_next_is_whole(artifact: Callable[[str], Path]) -> None:
    ended = run(
        artifact("gqa"),
        """
        expected = generate(server)
        tokens = np.arange(4)

        class Broken:
            '''A session that fails before its nodes have run.'''
            def run_with_iobinding(self, binding):
                raise RuntimeError("this piece fails")

        for kind in ("piece", "attention"):
            server.open(9)
            server.plan([Chunk(9, 0, 4)])
            kept, attention = engine._sessions[1], server
            if kind == "piece":
                engine._sessions[1] = Broken()
            else:
                attention = Outside(server, fails_at=1)
            try:
                engine.run(tokens, tokens, attention)
            except RuntimeError as error:
                print(error)
            engine._sessions[1] = kept
            server.rollback()
            server.close(9)
            outside = Outside(server)
            np.testing.assert_array_equal(generate(outside), expected)
            np.testing.assert_array_equal(generate(server), expected)
        """,
    )
    assert (ended.code, ended.out) == (0, "this piece fails\nthis layer fails\n"), ended.err


@needs_borrowing
def test_an_observer_sees_a_step_that_runs_outside(artifact: Callable[[str], Path]) -> None:
    ended = run(
        artifact("gqa"),
        """
        expected = generate(server)
        engine.observe(Shown())
        np.testing.assert_array_equal(generate(server), expected)
        engine.observe(None)
        np.testing.assert_array_equal(generate(server), expected)
        print("same")
        """,
    )
    assert (ended.code, ended.out) == (0, "same\n"), ended.err


@needs_borrowing
def test_a_model_that_is_forgotten_takes_nothing_with_it(artifact: Callable[[str], Path]) -> None:
    """Its sessions, operators and attention server go in any order, and not those of another model."""
    ended = run(
        artifact("gqa"),
        """
        import gc
        expected = generate(server)
        for _ in range(5):
            other = Model(sys.argv[1], ModelOptions(threads=2, verify=False, max_model_len=256))
            other.attention.open(0)
            other.attention.plan([Chunk(0, 0, 9)])
            other.engine.run(np.arange(9), np.arange(9), other.attention)
            del other
            gc.collect()
            np.testing.assert_array_equal(generate(server), expected)
        print("same")
        """,
    )
    assert (ended.code, ended.out) == (0, "same\n"), ended.err


@needs_borrowing
def test_entries_run_in_turn_and_none_twice() -> None:
    import onnxruntime as ort
    from onnx import TensorProto, helper

    from cleave.crew.callback import DOMAIN, OPERATOR
    from cleave.crew.series import Series

    threads, nodes = 3, 4
    series = Series(threads, inputs=2)
    graph = helper.make_graph(
        [helper.make_node(OPERATOR, ["a", "b"], [f"made{i}"], domain=DOMAIN) for i in range(nodes)],
        "series",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in ("a", "b")],
        [helper.make_tensor_value_info(f"made{i}", TensorProto.INT64, [1]) for i in range(nodes)],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, 1)]
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    series.register(options)
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    session: Any = ort.InferenceSession(model.SerializeToString(), options)
    binding: Any = session.io_binding()
    for name in ("a", "b"):
        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(np.zeros(5, np.float32)))
    for node in range(nodes):
        binding.bind_ortvalue_output(f"made{node}", ort.OrtValue.ortvalue_from_numpy(np.zeros(1, np.int64)))

    class EveryEntry:
        """A crew that runs the same job once in each of three entries, beside one of no parts."""

        def run(self, function: int, block: int, parts: int) -> None:
            once, never = (function, block, parts), (function, block, 0)
            series.begin(np.array([[once, never], [never, never], [never, never]], np.int64), threads)
            session.run_with_iobinding(binding)  # one node more than entries
            series.begin(np.array([[once, once]], np.int64), threads)
            series.end()
            session.run_with_iobinding(binding)  # nothing is left

    counter = Counter(EveryEntry())  # type: ignore[arg-type]
    for parts in range(1, PARTS):
        counter.run(parts)


def test_arrays_that_do_not_fit_are_refused_before_anything_runs() -> None:
    spec = AttentionSpec(heads=4, kv_heads=2, head_dim=16, scale=0.25)
    server = AttentionServer([spec] * 2, num_pages=4, max_position=64, max_tokens=8, threads=2)
    wide, narrow = np.zeros((3, 64), np.float32), np.zeros((3, 32), np.float32)
    server.open(0)
    with pytest.raises(AttentionError, match="no step is planned"):
        server.jobs(wide, narrow, narrow, wide)
    server.plan([Chunk(0, 0, 3)])
    for wrong in (wide[:2], wide.astype(np.float64), np.asfortranarray(wide), wide[:, :48].copy()):
        with pytest.raises(AttentionError, match="q is float"):
            server.jobs(wrong, narrow, narrow, wide)
    with pytest.raises(AttentionError, match="numpy arrays"):
        server.jobs(wide, narrow, narrow.tolist(), wide)
    assert server.runs == 0
    jobs = server.jobs(wide, narrow, narrow, wide)
    assert jobs is not None
    assert jobs.entries.shape == (2, 2, 3)
    assert server.runs == 2
    server.rollback()
    server.shutdown()


def test_a_backend_without_compiled_functions_has_no_jobs() -> None:
    spec = AttentionSpec(heads=4, kv_heads=2, head_dim=16, scale=0.25)
    server = AttentionServer([spec], backend="reference", num_pages=4, max_position=64, max_tokens=8)
    server.open(0)
    server.plan([Chunk(0, 0, 1)])
    assert server.jobs(None, None, None, None) is None
    server.rollback()
    server.shutdown()
