"""What the penalties and the bad words need to know of the tokens so far; it grows with each token."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt


class TokenCounts:
    """Which tokens there were, and how often the answer has each."""

    def __init__(self, prompt: Iterable[int]) -> None:
        """The tokens of the prompt count as there, and as 0 times in the answer."""
        known = np.unique(np.fromiter(prompt, np.int64))
        self.size = len(known)
        """Different tokens."""
        self.tokens = np.zeros(_room(self.size), np.int64)
        """[at least size] each of them once."""
        self.counts = np.zeros(_room(self.size), np.int64)
        """[at least size] how often the answer has it."""
        self.tokens[: self.size] = known
        self._places = {token: place for place, token in enumerate(known.tolist())}

    def add(self, token: int) -> None:
        """One more token of the answer."""
        place = self._places.get(token)
        if place is None:
            place = self._places[token] = self.size
            if place == len(self.tokens):
                self.tokens = np.resize(self.tokens, _room(place))
                self.counts = np.concatenate([self.counts, np.zeros(_room(place) - place, np.int64)])
            self.tokens[place] = token
            self.size += 1
        self.counts[place] += 1


class BadWords:
    """Which tokens would complete a word that is not wanted."""

    def __init__(self, words: Iterable[Sequence[int]], prompt: Sequence[int]) -> None:
        """`words` are token ids, at least one each."""
        words = set(map(tuple, words))
        self.single = [word[0] for word in words if len(word) == 1]
        """Words of one token, which may never come."""
        self.longer = [(word[:-1], word[-1]) for word in words if len(word) > 1]
        """The others: what they begin with, and the token that completes them."""
        reach = max((len(begin) for begin, _ in self.longer), default=0)
        self._last = deque(prompt[max(0, len(prompt) - reach) :], maxlen=reach)

    def add(self, token: int) -> None:
        """One more token."""
        self._last.append(token)

    def banned(self) -> npt.NDArray[np.int64]:
        """The tokens that may not come next."""
        last = tuple(self._last)
        longer = [token for begin, token in self.longer if last[-len(begin) :] == begin]
        return np.array(self.single + longer, np.int64)


def _room(size: int) -> int:
    return max(32, 2 * size)
