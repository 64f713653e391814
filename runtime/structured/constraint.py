"""What the sampler needs to know of structured output: which tokens may come next."""

from __future__ import annotations

from typing import Any, Protocol

import numpy.typing as npt


class TokenConstraint(Protocol):
    """Where one request stands in its grammar."""

    def mask(self) -> npt.NDArray[Any]:
        """Bits of the tokens that may come next: [ceil(vocab / 32)] uint32, token t is bit t % 32 of
        word t // 32. Waits where it is still being computed; valid until the next `accept`.
        """

    def accept(self, token: int) -> None:
        """Go on by a token that `mask` allowed. The next mask is begun in the background, so that it is
        computed while the engine runs. Raises RequestError for a token that is not allowed.
        """

    @property
    def is_complete(self) -> bool:
        """Whether the text matches and nothing but the end may follow."""
