"""Page keys: what a full page holds, as a digest of its tokens and of all tokens before them."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable

_DIGEST_BYTES = 32
_PERSON = b"cleave page key"


class PageKeys:
    """The keys of the full pages of one token history, in order; they grow with it.

    Key i is BLAKE2b over key i - 1 and the tokens of page i; the first one starts from the page size
    and the adapter. Equal keys therefore mean equal tokens at equal positions under the same weights. The
    digest is 256 bits wide, so that nobody can write a prompt that finds the pages of another one.
    """

    def __init__(self, page_size: int, adapter: str | None = None) -> None:
        """No tokens yet. `adapter` names what else changes k and v (None: the plain model)."""
        name = b"" if adapter is None else adapter.encode() + b"\0"
        self.page_size = page_size
        self._last = _digest(page_size.to_bytes(8, "little") + name)
        self._keys: list[bytes] = []
        self._rest: list[int] = []

    def append(self, token: int) -> None:
        """Add one token to the end of the history."""
        self._rest.append(token)
        if len(self._rest) == self.page_size:
            self.extend(())

    def extend(self, tokens: Iterable[int]) -> None:
        """Add tokens to the end of the history."""
        rest, size = self._rest, self.page_size
        rest.extend(tokens)
        full = len(rest) // size * size
        for start in range(0, full, size):
            self._last = _digest(self._last + array("q", rest[start : start + size]).tobytes())
            self._keys.append(self._last)
        del rest[:full]

    @property
    def tokens(self) -> int:
        """Tokens of the history."""
        return len(self._keys) * self.page_size + len(self._rest)

    def __len__(self) -> int:
        """Full pages of the history."""
        return len(self._keys)

    def __getitem__(self, page: int) -> bytes:
        return self._keys[page]


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_DIGEST_BYTES, person=_PERSON).digest()
