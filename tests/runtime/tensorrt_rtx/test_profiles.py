"""The step sizes that plans are built for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cleave.errors import EngineError
from cleave.runtime.engines.tensorrt_rtx.profiles import Profiles

sizes = st.integers(1, 4096).flatmap(lambda most: st.tuples(st.integers(1, most), st.just(most)))


@given(sizes, st.data())
def test_every_decode_step_up_to_the_largest_bucket_has_the_smallest_bucket_that_fits(
    limits: tuple[int, int], data: st.DataObject
) -> None:
    profiles = Profiles(*limits)
    tokens = data.draw(st.integers(1, limits[1]))
    found = profiles.bucket(tokens)
    if tokens > limits[0]:
        assert found is None
        return
    assert found is not None
    bucket = profiles.buckets[found]
    assert list(profiles)[found].tokens.low == bucket == min(b for b in profiles.buckets if b >= tokens)
    assert bucket < 2 * tokens or bucket == 1


@given(sizes)
def test_profiles_are_ordered_ranges_with_the_optimum_inside(limits: tuple[int, int]) -> None:
    profiles = list(Profiles(*limits))
    assert [profile.tokens.high for profile in profiles[:-1]] == sorted({*Profiles(*limits).buckets})
    for profile in profiles:
        for size in profile.dimensions.values():
            assert 1 <= size.low <= size.optimum <= size.high <= limits[1]
            assert abs((size.high - size.optimum) - (size.optimum - size.low)) <= 1
    assert profiles[Profiles(*limits).prefill].name == "prefill"


def test_the_buckets_are_powers_of_two_and_the_largest() -> None:
    assert Profiles(64, 512).buckets == (1, 2, 4, 8, 16, 32, 64)
    assert Profiles(48, 512).buckets == (1, 2, 4, 8, 16, 32, 48)
    assert Profiles(1, 1).buckets == (1,)


@pytest.mark.parametrize(("decode", "tokens"), [(-1, 8), (9, 8), (0, 0), (0, 8), (1, -1)])
def test_sizes_that_cannot_be_are_refused(decode: int, tokens: int) -> None:
    with pytest.raises(EngineError, match=f"max_tokens is {tokens} and max_sequences {decode}"):
        Profiles(decode, tokens)


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (600, "a step of 600 tokens .* decode 1, 2; prefill 1 to 512; build with --max_tokens_per_step 600"),
        (0, "a step of 0 tokens .* at least one"),
    ],
)
def test_a_step_that_fits_no_profile_is_told_what_would(tokens: int, words: str) -> None:
    with pytest.raises(EngineError, match=words):
        Profiles(2, 512).check(tokens)
    Profiles(2, 512).check(512)
