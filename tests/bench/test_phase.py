"""Figures from repetitions: medians, spread, the share of the limit, and what was disturbed."""

from __future__ import annotations

import pytest

from cleave.errors import BenchError
from cleave.runtime.bench.counts import Work
from cleave.runtime.bench.limits import CpuProbe, Limits, last_level_cache
from cleave.runtime.bench.phase import Phase, Run, middle_limits

LIMITS = Limits(100.0, {"float32": 1000.0})


def phase(*runs: Run, work: Work) -> Phase:
    return Phase("decode", 2, 20, work, "float32", list(runs))


def test_memory_or_compute_is_the_limit_whichever_takes_longer() -> None:
    reading, multiplying = Work(weight_bytes=200, operations=100), Work(weight_bytes=100, operations=5000)
    assert (LIMITS.seconds(reading, "float32"), LIMITS.bound(reading, "float32")) == (2.0, "memory")
    assert (LIMITS.seconds(multiplying, "float32"), LIMITS.bound(multiplying, "float32")) == (5.0, "compute")


def test_a_row_has_medians_over_the_repetitions() -> None:
    work = Work(weight_bytes=100, operations=10)
    row = phase(*(Run((seconds,), LIMITS) for seconds in (2.0, 4.0, 5.0)), work=work).row()
    assert row["tokens_per_s"] == 5.0
    assert row["ms"] == 4000.0
    assert (row["ms_p10"], row["ms_p90"]) == pytest.approx((2400.0, 4800.0))
    assert row["bytes_per_s"] == 25.0
    assert row["operations_per_s"] == 2.5
    assert row["percent_of_limit"] == 25.0
    assert row["bound"] == "memory"


def test_each_repetition_is_judged_by_the_limit_of_its_own_moment() -> None:
    slow, fast = Limits(50.0, {"float32": 1e3}), Limits(100.0, {"float32": 1e3})
    work = Work(weight_bytes=100)
    row = phase(Run((4.0,), slow), Run((2.0,), fast), Run((4.0,), slow), work=work).row()
    assert row["percent_of_limit"] == 50.0


def test_disturbed_repetitions_are_left_out_while_half_are_left() -> None:
    runs = [Run((1.0,), LIMITS), Run((9.0,), LIMITS, others=0.8), Run((1.0,), LIMITS)]
    row = phase(*runs, work=Work(weight_bytes=100)).row()
    assert (row["ms"], row["repetitions"], row["disturbed"]) == (1000.0, 2, False)


def test_all_count_and_the_row_says_so_where_most_were_disturbed() -> None:
    runs = [Run((1.0,), LIMITS), *(Run((3.0,), LIMITS, others=0.8) for _ in range(2))]
    row = phase(*runs, work=Work(weight_bytes=100)).row()
    assert (row["ms"], row["repetitions"], row["disturbed"]) == (3000.0, 3, True)


def test_the_middle_of_limits_is_taken_by_itself() -> None:
    limits = [Limits(1.0, {"a": 30.0}), Limits(2.0, {"a": 10.0}), Limits(9.0, {"a": 20.0})]
    assert middle_limits(limits) == Limits(2.0, {"a": 20.0})


def test_a_dtype_that_was_not_measured_has_no_limit() -> None:
    with pytest.raises(
        BenchError, match="the operation rate of float16 was not measured; there are: float32"
    ):
        LIMITS.seconds(Work(operations=1), "float16")


def test_the_probe_measures_both_limits_over_more_than_the_cache() -> None:
    probe = CpuProbe(threads=2)
    assert sum(part.nbytes for part in probe._parts) >= min(4 * last_level_cache(), 1 << 30)
    limits = probe.measure()
    probe.close()
    assert limits.bandwidth > 0
    assert set(limits.operations) == {"float32", "int8"}
    assert min(limits.operations.values()) > 0
