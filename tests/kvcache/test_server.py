"""The attention server: a step is a transaction, and every refusal says why and changes nothing."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from cleave.errors import AttentionError, OutOfPages
from cleave.kvcache.server import AttentionServer
from cleave.kvcache.spec import AttentionSpec, RopeSpec
from cleave.kvcache.step import Chunk

SPEC = AttentionSpec(2, 1, 8, 0.5, RopeSpec("default", 10_000.0, 8))


def server_of(**changes: Any) -> AttentionServer:
    options: dict[str, Any] = {
        "backend": "cpu",
        "num_pages": 6,
        "max_position": 80,
        "max_tokens": 64,
        "threads": 1,
        **changes,
    }
    return AttentionServer([SPEC, SPEC], **options)


def tensors(tokens: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    q, k, v = (rng.standard_normal((tokens, width), dtype=np.float32) for width in (16, 8, 8))
    return q, k, v, np.zeros_like(q)


def run_step(server: AttentionServer, step: list[Chunk], seed: int = 0) -> np.ndarray:
    server.plan(step)
    q, k, v, out = tensors(sum(chunk.count for chunk in step), seed)
    for layer in range(2):
        server.run(layer, q, k, v, out)
    server.commit()
    return out


@pytest.fixture
def server() -> AttentionServer:
    """Sequences 1 with 20 tokens, 2 with none; four of six pages free."""
    server = server_of()
    server.open(1)
    server.open(2)
    run_step(server, [Chunk(1, 0, 20)])
    return server


def state(server: AttentionServer) -> tuple[Any, ...]:
    tables = {name: (server.length(name), server.pages.table(name).pages.tolist()) for name in (1, 2)}
    return server.free_pages, tables, server.steps


def test_rows_get_the_slots_of_their_positions(server: AttentionServer) -> None:
    plan = server.plan([Chunk(2, 0, 3), Chunk(1, 20, 14)])
    assert plan.tokens == 17
    assert plan.chunks == 2
    assert plan.offsets.tolist() == [0, 3, 17]
    assert plan.starts.tolist() == [0, 20]
    assert plan.positions.tolist() == [0, 1, 2, *range(20, 34)]
    assert plan.page_table.shape == (2, 3)
    assert plan.page_table[0, 1:].tolist() == [-1, -1]
    pages = [plan.page_table[0, 0]] * 3 + [plan.page_table[1, p // 16] for p in range(20, 34)]
    assert plan.slots.tolist() == [page * 16 + p % 16 for page, p in zip(pages, plan.positions, strict=True)]


def test_commit_moves_the_lengths_on(server: AttentionServer) -> None:
    server.plan([Chunk(2, 0, 3), Chunk(1, 20, 14)])
    server.commit()
    server.check()
    assert (server.length(1), server.length(2)) == (34, 3)
    assert server.free_pages == 2
    assert (server.steps, server.runs) == (2, 2)


def test_rollback_gives_back_pages_and_lengths(server: AttentionServer) -> None:
    before = state(server)
    server.plan([Chunk(2, 0, 40), Chunk(1, 20, 14)])
    assert server.free_pages == 0
    server.run(0, *tensors(54))
    server.rollback()
    server.check()
    assert state(server) == before


def test_a_step_that_was_rolled_back_runs_again_as_if_it_never_had(server: AttentionServer) -> None:
    fresh = server_of()
    fresh.open(1)
    run_step(fresh, [Chunk(1, 0, 20)])
    server.plan([Chunk(2, 0, 40), Chunk(1, 20, 14)])
    server.run(0, *tensors(54, seed=1))
    server.rollback()
    step = [Chunk(1, 20, 20)]
    np.testing.assert_array_equal(run_step(server, step, seed=2), run_step(fresh, step, seed=2))


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ([], "the step is empty"),
        ([Chunk(2, 0, 1), Chunk(3, 0, 1)], "sequence 3 is not open; call open"),
        ([Chunk(2, 0, 1), Chunk(1, 20, 1), Chunk(2, 1, 1)], "two chunks in one step"),
        ([Chunk(2, 0, 1), Chunk(1, 19, 1)], "starts at 19; the cache holds 20 tokens"),
        ([Chunk(2, 0, 0)], "has 0 tokens"),
        ([Chunk(2, 0, 1), Chunk(1, 20, 61)], "grow to 81 tokens; max_position allows 80"),
        ([Chunk(2, 0, 40), Chunk(1, 20, 25)], "has 65 tokens; max_tokens allows 64"),
        ([Chunk(2, 0, 33), Chunk(1, 20, 29)], "62 tokens .* 5 more KV pages are needed and 4 of 6"),
    ],
)  # fmt: skip
def test_a_step_that_is_refused_changes_nothing(
    server: AttentionServer, step: list[Chunk], message: str
) -> None:
    before = state(server)
    with pytest.raises(AttentionError, match=message):
        server.plan(step)
    assert state(server) == before
    run_step(server, [Chunk(2, 0, 1), Chunk(1, 20, 1)])


def test_running_out_of_pages_has_its_own_error(server: AttentionServer) -> None:
    with pytest.raises(OutOfPages):
        server.plan([Chunk(2, 0, 33), Chunk(1, 20, 29)])


def test_a_backend_that_fails_to_plan_changes_nothing(
    server: AttentionServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(plan: object) -> None:
        raise AttentionError("no")

    before = state(server)
    with monkeypatch.context() as patch:
        patch.setattr(server._backend, "plan", fail)
        with pytest.raises(AttentionError, match="no"):
            server.plan([Chunk(2, 0, 40)])
    assert state(server) == before
    run_step(server, [Chunk(2, 0, 40)])


def test_pages_needed_is_what_plan_takes(server: AttentionServer) -> None:
    step = [Chunk(2, 0, 17), Chunk(1, 20, 12)]
    needed, free = server.pages_needed(step), server.free_pages
    server.plan(step)
    assert free - server.free_pages == needed == 2
    assert server.pages_needed([Chunk(99, 0, 17)]) == 2


def test_calls_out_of_turn_are_refused(server: AttentionServer) -> None:
    with pytest.raises(AttentionError, match="no step is planned"):
        server.run(0, *tensors(1))
    with pytest.raises(AttentionError, match="no step is planned"):
        server.commit()
    with pytest.raises(AttentionError, match="no step is planned"):
        server.rollback()
    server.plan([Chunk(2, 0, 1)])
    with pytest.raises(AttentionError, match="planned already"):
        server.plan([Chunk(1, 20, 1)])
    with pytest.raises(AttentionError, match="there is no layer 2; this server has layers 0 to 1"):
        server.run(2, *tensors(1))
    with pytest.raises(AttentionError, match="there is no layer -1"):
        server.run(-1, *tensors(1))
    with pytest.raises(AttentionError, match="sequence 2 is in the planned step"):
        server.close(2)
    with pytest.raises(AttentionError, match="sequence 2 is open already"):
        server.open(2)


def test_closing_a_sequence_frees_its_pages(server: AttentionServer) -> None:
    server.close(1)
    server.check()
    assert server.free_pages == server.num_pages
    with pytest.raises(AttentionError, match="sequence 1 is not open"):
        server.close(1)


def test_two_servers_do_not_mix() -> None:
    one, two, alone = server_of(), server_of(), server_of()
    for server in (one, two, alone):
        server.open(1)
    outs = []
    for start in range(0, 40, 10):
        two_first = [Chunk(1, start, 10)]
        run_step(two, two_first, seed=100 + start)
        outs.append((run_step(one, two_first, seed=start), run_step(alone, two_first, seed=start)))
    for shared, single in outs:
        np.testing.assert_array_equal(shared, single)
    two.shutdown()
    run_step(one, [Chunk(1, 40, 1)])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"page_size": 8}, "page_size is 8; .* multiple of 16"),
        ({"page_size": 0}, "page_size is 0"),
        ({"threads": 0}, "threads is 0"),
        ({"max_position": 0}, "max_position is 0"),
        ({"num_pages": 0}, "num_pages is 0"),
        ({"backend": "gpu"}, "no attention backend 'gpu'"),
    ],
)
def test_options_that_are_not_allowed(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(AttentionError, match=message):
        server_of(**changes)


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("q", lambda x: x.astype(np.float64)),
        ("k", lambda x: np.ascontiguousarray(x[:-1])),
        ("v", lambda x: np.asfortranarray(x)),
        ("out", lambda x: x[:, :-1]),
        ("q", lambda x: x.tolist()),
    ],
)
def test_arrays_that_do_not_fit_are_named(server: AttentionServer, name: str, spoil: Any) -> None:
    server.plan([Chunk(2, 0, 4)])
    arrays = dict(zip(("q", "k", "v", "out"), tensors(4), strict=True))
    arrays[name] = spoil(arrays[name])
    with pytest.raises(AttentionError, match=f"^{name} is "):
        server.run(0, **arrays)


def test_an_output_that_cannot_be_written_is_named(server: AttentionServer) -> None:
    server.plan([Chunk(2, 0, 4)])
    q, k, v, out = tensors(4)
    out.setflags(write=False)
    with pytest.raises(AttentionError, match=r"^out is .* writeable"):
        server.run(0, q, k, v, out)


def test_the_cpu_backend_needs_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from cleave.kvcache.server import AttentionServer; from cleave.kvcache.spec import AttentionSpec\n"
        "from cleave.errors import MissingPackage\n"
        "limits = dict(num_pages=1, max_position=16, max_tokens=16)\n"
        "AttentionServer([AttentionSpec(1, 1, 8, 1.0)], **limits)\n"
        "try: AttentionServer([AttentionSpec(1, 1, 8, 1.0)], backend='reference', **limits)\n"
        "except MissingPackage as error: print(error)\n"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.startswith("the reference attention backend needs torch: pip install ")
