"""The cpu backend gives a row the same bits whatever else is going on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from crews import KINDS

from cleave.kvcache.backends import cpu, cpu_work
from cleave.kvcache.server import AttentionServer
from cleave.kvcache.spec import AttentionSpec, RopeSpec
from cleave.kvcache.step import Chunk

ROPE = RopeSpec("default", 10_000.0, 64)
SPECS = {
    "grouped": AttentionSpec(9, 3, 64, 0.125, ROPE),
    "one query head a KV head": AttentionSpec(3, 3, 80, 0.11, RopeSpec("default", 500_000.0, 32)),
    "one KV head": AttentionSpec(7, 1, 20, 0.2, RopeSpec("default", 100.0, 20)),
    "no rope": AttentionSpec(10, 2, 48, 0.1),
    "window": AttentionSpec(8, 4, 64, 0.125, ROPE, window=37),
    "softcap": AttentionSpec(4, 2, 33, 0.5, softcap=3.0),
    "a tile of 26 heads": AttentionSpec(26, 1, 16, 0.25, window=150),
}
LENGTH = 333

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]
every_spec = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)


@pytest.fixture(autouse=True)
def _share_small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let threads share every step, however small."""
    monkeypatch.setattr(cpu_work, "SPLIT", 1)
    monkeypatch.setattr(cpu_work, "APPEND", 1)


def server_of(spec: AttentionSpec, num_pages: int = 32, **changes: Any) -> AttentionServer:
    options = {"max_position": 1024, "max_tokens": 4096, "threads": 1, **changes}
    return AttentionServer([spec], num_pages=num_pages, **options)


def tokens_of(spec: AttentionSpec, length: int, seed: int = 0) -> Arrays:
    rng = np.random.default_rng(seed)
    q, k, v = (
        rng.standard_normal((length, width), dtype=np.float32)
        for width in (spec.q_size, spec.kv_size, spec.kv_size)
    )
    return q, k, v


def run(server: AttentionServer, step: Sequence[Chunk], rows: Sequence[Arrays]) -> list[np.ndarray]:
    """Run one step; rows[c] are all tokens of chunk c's sequence. The output of each chunk."""
    server.plan(step)
    q, k, v = (
        np.concatenate([x[tensor][c.start : c.start + c.count] for c, x in zip(step, rows, strict=True)])
        for tensor in range(3)
    )
    out = np.full_like(q, np.nan)
    server.run(0, q, k, v, out)
    server.commit()
    return np.split(out, np.cumsum([chunk.count for chunk in step])[:-1])


def alone(server: AttentionServer, tokens: Arrays, counts: Iterable[int], name: int = 0) -> np.ndarray:
    """One sequence by itself, in chunks of these sizes."""
    server.open(name)
    outs, at = [], 0
    for count in counts:
        outs += run(server, [Chunk(name, at, count)], [tokens])
        at += count
    return np.concatenate(outs)


def chunks_of(size: int, length: int = LENGTH) -> list[int]:
    return [min(size, length - start) for start in range(0, length, size)]


def assert_same_bits(a: np.ndarray, b: np.ndarray) -> None:
    assert not np.isnan(a).any()
    np.testing.assert_array_equal(a.view(np.int32), b.view(np.int32))


@every_spec
@pytest.mark.parametrize("size", [1, 7, 64])
def test_chunks_of_any_size_give_the_bits_of_the_whole(spec: AttentionSpec, size: int) -> None:
    tokens = tokens_of(spec, LENGTH)
    whole = alone(server_of(spec), tokens, [LENGTH])
    assert_same_bits(alone(server_of(spec), tokens, chunks_of(size)), whole)


@every_spec
def test_a_sequence_in_a_batch_of_32_has_the_bits_it_has_alone(spec: AttentionSpec) -> None:
    lengths = [1 + 13 * i for i in range(32)]
    everyone = [tokens_of(spec, length, seed) for seed, length in enumerate(lengths)]
    server = server_of(spec, num_pages=500, max_tokens=8192)
    for name in range(32):
        server.open(name)
    outs: list[list[np.ndarray]] = [[] for _ in lengths]
    at = [0] * 32
    while any(start < length for start, length in zip(at, lengths, strict=True)):
        # Prefill chunks of several sizes and decode tokens in one step.
        step = [
            Chunk(i, at[i], min(lengths[i] - at[i], (1, 50, 17, 200)[i % 4]))
            for i in range(32)
            if at[i] < lengths[i]
        ]
        for chunk, out in zip(step, run(server, step, [everyone[c.sequence] for c in step]), strict=True):
            outs[chunk.sequence].append(out)
            at[chunk.sequence] += chunk.count
    for i in (0, 1, 2, 7, 30, 31):
        single = alone(server_of(spec), everyone[i], [lengths[i]])
        assert_same_bits(np.concatenate(outs[i]), single)


@every_spec
@pytest.mark.parametrize("threads", [2, 3])
def test_threads_do_not_change_bits(spec: AttentionSpec, threads: int) -> None:
    tokens = tokens_of(spec, LENGTH)
    counts = [300, 1, 1, 31]
    server = server_of(spec, threads=threads)
    assert_same_bits(alone(server, tokens, counts), alone(server_of(spec), tokens, counts))
    server.shutdown()


@every_spec
@pytest.mark.parametrize("kind", KINDS)
def test_whose_threads_they_are_does_not_change_bits(
    spec: AttentionSpec, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = tokens_of(spec, LENGTH)
    counts = [300, 1, 1, 31]
    expected = alone(server_of(spec), tokens, counts)
    monkeypatch.setattr(cpu, "make_crew", lambda threads, name: KINDS[kind](threads))
    server = server_of(spec, threads=4)
    assert_same_bits(alone(server, tokens, counts), expected)
    server.shutdown()


@every_spec
def test_pages_do_not_change_bits(spec: AttentionSpec) -> None:
    tokens = tokens_of(spec, LENGTH)
    expected = alone(server_of(spec), tokens, chunks_of(64))
    server = server_of(spec, num_pages=60)
    names = list(range(100, 160))
    for name in names:
        server.open(name)
    run(server, [Chunk(name, 0, 1) for name in names], [tokens] * len(names))
    for name in np.random.default_rng(1).permutation(names):
        server.close(int(name))
    assert_same_bits(alone(server, tokens, chunks_of(64)), expected)
    pages = server.pages.table(0).pages.tolist()
    assert pages != sorted(pages)


@every_spec
@pytest.mark.parametrize("page_size", [48, 128, 1024])
def test_the_page_size_does_not_change_bits(spec: AttentionSpec, page_size: int) -> None:
    tokens = tokens_of(spec, LENGTH)
    server = server_of(spec, page_size=page_size)
    assert_same_bits(alone(server, tokens, [200, 133]), alone(server_of(spec), tokens, [200, 133]))


@every_spec
def test_what_an_earlier_sequence_left_in_the_pages_is_never_seen(spec: AttentionSpec) -> None:
    tokens = tokens_of(spec, LENGTH)
    expected = alone(server_of(spec), tokens, [250, 1, 82])
    server = server_of(spec, num_pages=21)
    poison = tokens_of(spec, 336)
    for array in poison:
        array[:] = np.nan
    server.open(1)
    run(server, [Chunk(1, 0, 336)], [poison])
    server.close(1)
    assert server.free_pages == 21
    assert_same_bits(alone(server, tokens, [250, 1, 82]), expected)


@every_spec
def test_a_neighbour_that_is_not_a_number_keeps_it_to_itself(spec: AttentionSpec) -> None:
    tokens = tokens_of(spec, 40)
    poison = tokens_of(spec, 40)
    for array in poison:
        array[:] = np.inf
    server = server_of(spec)
    server.open(0)
    server.open(1)
    (_, ours) = run(server, [Chunk(1, 0, 40), Chunk(0, 0, 40)], [poison, tokens])
    assert_same_bits(ours, alone(server_of(spec), tokens, [40]))


def test_servers_in_different_threads_do_not_disturb_each_other() -> None:
    spec = SPECS["grouped"]
    everyone = [tokens_of(spec, LENGTH, seed) for seed in range(4)]
    expected = [alone(server_of(spec), tokens, chunks_of(40)) for tokens in everyone]
    servers = [server_of(spec, threads=2) for _ in everyone]
    with ThreadPoolExecutor(4) as pool:
        outs = pool.map(alone, servers, everyone, [chunks_of(40)] * 4)
        for out, single in zip(outs, expected, strict=True):
            assert_same_bits(out, single)
    for server in servers:
        server.shutdown()
