"""Stop strings: where a streamed text ends, however it is cut into tokens."""

from __future__ import annotations


class StopStrings:
    """Looks for the first of some strings in a text that comes piece by piece.

    The string that is complete first ends the text; of those that are complete at the same character,
    the longest. So the result does not depend on where the text was cut. What may still turn out to be
    the beginning of a stop string is held back.
    """

    def __init__(self, strings: tuple[str, ...], *, include: bool = False) -> None:
        """`include` leaves the string that was found at the end of the text."""
        self._strings = strings
        self._include = include
        self._held = ""
        self.found: str | None = None

    def push(self, text: str) -> str:
        """Take more text; gives back what is certain, and nothing more once a string was found."""
        if not self._strings:
            return text
        if self.found is not None:
            return ""
        self._held += text
        matches = [
            (start + len(string), start, string)
            for string in self._strings
            if (start := self._held.find(string)) >= 0
        ]
        if matches:
            end, start, self.found = min(matches)
            certain, self._held = self._held[: end if self._include else start], ""
            return certain
        cut = len(self._held) - self._longest_beginning()
        certain, self._held = self._held[:cut], self._held[cut:]
        return certain

    def finish(self) -> str:
        """The text that was held back; no more comes."""
        rest, self._held = self._held, ""
        return rest

    def _longest_beginning(self) -> int:
        """How many characters at the end are the beginning of a stop string."""
        longest = max((len(string) for string in self._strings), default=0)
        for length in range(min(longest - 1, len(self._held)), 0, -1):
            tail = self._held[-length:]
            if any(string.startswith(tail) for string in self._strings):
                return length
        return 0
