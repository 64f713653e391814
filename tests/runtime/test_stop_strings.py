"""Stop strings: the same end however the text is cut."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from cleave.runtime.stop_strings import StopStrings

TEXTS = st.text(alphabet="abc", max_size=24)
STOPS = st.lists(st.text(alphabet="abc", min_size=1, max_size=5), min_size=1, max_size=4, unique=True)


def expected(text: str, strings: list[str], include: bool) -> tuple[str, str | None]:
    """By definition: the first prefix of the text that ends in a stop string, by its longest one."""
    for end in range(1, len(text) + 1):
        found = [string for string in strings if text[:end].endswith(string)]
        if found:
            longest = max(found, key=len)
            return text[: end if include else end - len(longest)], longest
    return text, None


def run(pieces: list[str], strings: list[str], include: bool) -> tuple[str, str | None]:
    stops = StopStrings(tuple(strings), include=include)
    text = "".join(stops.push(piece) for piece in pieces) + stops.finish()
    return text, stops.found


@given(TEXTS, STOPS, st.booleans(), st.data())
def test_any_cut_of_any_text(text: str, strings: list[str], include: bool, data: st.DataObject) -> None:
    borders = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8), label="borders"))
    pieces = [text[start:end] for start, end in itertools.pairwise([0, *borders, len(text)])]
    assert run(pieces, strings, include) == expected(text, strings, include)


def test_every_split_of_one_text() -> None:
    text, strings = "one stop, two sto", ["stop", "two"]
    for bits in range(2 ** (len(text) - 1)):
        if bits.bit_count() > 4:
            continue
        borders = [index + 1 for index in range(len(text) - 1) if bits >> index & 1]
        pieces = [text[start:end] for start, end in itertools.pairwise([0, *borders, len(text)])]
        assert run(pieces, strings, False) == ("one ", "stop")
        assert run(pieces, ["nowhere"], False) == (text, None)


@given(TEXTS, STOPS)
def test_no_more_is_held_back_than_may_become_a_stop_string(text: str, strings: list[str]) -> None:
    stops = StopStrings(tuple(strings))
    given_so_far = ""
    for index, character in enumerate(text):
        given_so_far += stops.push(character)
        if stops.found is not None:
            return
        held = text[len(given_so_far) : index + 1]
        assert any(string.startswith(held) for string in strings)
        later = [text[start : index + 1] for start in range(len(given_so_far))]
        assert not any(string.startswith(tail) for string in strings for tail in later)


def test_characters_that_mean_something_to_a_regex() -> None:
    assert run(["a.", "*", "(b"], [".*("], False) == ("a", ".*(")


def test_nothing_comes_after_the_end() -> None:
    stops = StopStrings(("x",))
    assert (stops.push("ax"), stops.push("bx"), stops.finish()) == ("a", "", "")
