"""The ledger: which sequences wait and run, which steps are under way, and what came of them."""

from __future__ import annotations

from collections import deque

from cleave.errors import RequestError
from cleave.kvcache.budget import pages_for
from cleave.kvcache.memory_plan import SCORED_ROWS
from cleave.kvcache.page_manager import PageManager
from cleave.runtime.cuts import LEAST_ROWS
from cleave.runtime.queue import UrgencyQueue
from cleave.runtime.request import FinishReason
from cleave.runtime.sequence import Sequence
from cleave.runtime.step import Step, StepOutcome

PLACES_PER_PRIORITY = 1000


class Ledger:
    """The part of the scheduler that decides nothing: sequences come, steps end, sequences go.

    A step is scheduled, and then committed when it has run, or launched and committed later, or withdrawn.
    """

    def __init__(
        self,
        pages: PageManager,
        *,
        max_tokens: int,
        max_sequences: int,
        places_per_priority: int = PLACES_PER_PRIORITY,
        fixed_cuts: bool = False,
        scored_rows: int = SCORED_ROWS,
    ) -> None:
        """At most `max_tokens` rows a step and `max_sequences` running at once, over the KV pages of
        `pages`, where the scheduler alone opens and closes its sequences. With `fixed_cuts` prompts are cut
        as `fixed_cut` allows, which takes at least 4 rows. `scored_rows` of a step, at least 3, may score
        tokens of prompts.
        """
        self._pages = pages
        self._max_tokens = max_tokens
        # Rows for a prompt are left whenever all of the others decode.
        self._max_sequences = max(1, min(max_sequences, max_tokens - (LEAST_ROWS if fixed_cuts else 1)))
        self._fixed_cuts = fixed_cuts
        self._scored_rows = scored_rows
        self._places_per_priority = places_per_priority
        self._arrivals = 0
        self._waiting = UrgencyQueue()
        self._running = UrgencyQueue()
        self._scheduled: Step = ()
        self._launched: deque[Step] = deque()
        self._called_off: dict[int, tuple[FinishReason, str | None]] = {}
        self._preemptions = 0
        self.left: list[int] = []
        """Ids of sequences that have ended or were set back, since somebody last emptied it."""

    @property
    def is_idle(self) -> bool:
        """Whether nothing is left to do."""
        return not (self._waiting or self._running or self._launched)

    @property
    def waiting(self) -> int:
        """Sequences that wait, those that were preempted included."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Sequences that hold pages."""
        return len(self._running)

    @property
    def preemptions(self) -> int:
        """How often a sequence lost its pages to a more urgent one."""
        return self._preemptions

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence. Raises RequestError where it cannot fit the KV cache even when alone."""
        # The last generated token is never fed back, so its k and v are never stored.
        stored = sequence.max_length - 1
        if pages_for(stored, self._pages.page_size) > self._pages.num_pages:
            raise RequestError(
                f"the request may grow to {stored} cached tokens; the KV cache holds "
                f"{self._pages.num_pages * self._pages.page_size}: lower max_tokens or shorten the prompt"
            )
        rank = self._arrivals + self._places_per_priority * sequence.priority
        sequence.urgency = (rank, self._arrivals)
        sequence.status = "waiting"
        self._arrivals += 1
        self._waiting.add(sequence)

    def launched(self) -> None:
        """The scheduled step was launched, all of it: the attention server has committed it, and what comes
        of it is told later to `commit`.
        """
        step = self._take_scheduled()
        for chunk in step:
            chunk.sequence.cached = chunk.start + chunk.count
            chunk.sequence.in_flight += chunk.samples
            chunk.is_stored = True
        self._launched.append(step)

    def withdraw(self) -> None:
        """The scheduled step will not be run: the next one is scheduled with what is known by then."""
        self._take_scheduled()

    def commit(self, outcome: StepOutcome) -> list[Sequence]:
        """Take in what came of the oldest step that was launched, or else of the scheduled one; gives back
        the sequences that ended, in its order.

        A chunk of the scheduled one counts as computed where the attention server has committed it, and is
        scheduled again where not: after a step that was broken off, this brings both into line.
        """
        if self._launched:
            return self._commit_launched(self._launched.popleft(), outcome)
        step, self._scheduled = self._scheduled, ()
        ended = []
        length_of = self._pages.length
        for chunk in step:
            sequence = chunk.sequence
            end = chunk.start + chunk.count
            if length_of(sequence.id) == end:
                sequence.cached, chunk.is_stored = end, True
                sequence.prompt_logprobs += outcome.prompt_logprobs.get(sequence.id, ())
                if chunk.samples:
                    sequence.is_suspect = False
                    sequence.append(outcome.tokens[sequence.id], outcome.logprobs.get(sequence.id))
            if sequence.finish_reason is None and sequence.id in outcome.errors:
                sequence.finish("error", outcome.errors[sequence.id])
            if sequence.finish_reason is None and sequence.id in self._called_off:
                sequence.finish(*self._called_off[sequence.id])
            if sequence.finish_reason is not None:
                self._leave(sequence)
                ended.append(sequence)
        self._called_off.clear()
        return ended

    def abort(self, sequence: Sequence) -> bool:
        """Call a sequence off; see `end`."""
        return self.end(sequence, "abort")

    def end(self, sequence: Sequence, reason: FinishReason, error: str | None = None) -> bool:
        """End a sequence for a reason that is not in its tokens, wherever it stands; True where it ended now.

        One that is in the scheduled step ends when that is committed; one that has ended stays as it is.
        """
        if sequence.status == "ended":
            return False
        if any(chunk.sequence is sequence for chunk in self._scheduled):
            self._called_off[sequence.id] = (reason, error)
            return False
        sequence.finish(reason, error)
        if sequence.status != "new":
            self._leave(sequence)
        return True

    def _evict(self, sequence: Sequence) -> None:
        """Take the pages of a running sequence."""
        self._running.remove(sequence)
        self._pages.close(sequence.id)
        sequence.cached = 0
        sequence.residence += 1

    def _take_scheduled(self) -> Step:
        if self._called_off:
            raise RuntimeError("sequences of the scheduled step were called off: commit it")
        step, self._scheduled = self._scheduled, ()
        return step

    def _commit_launched(self, step: Step, outcome: StepOutcome) -> list[Sequence]:
        ended = []
        size = self._pages.page_size
        for chunk in step:
            sequence = chunk.sequence
            if chunk.is_void or sequence.status == "ended":
                outcome.tokens.pop(sequence.id, None)
                continue
            if sequence.id in outcome.lost:
                self._set_back(sequence)
                continue
            end = chunk.start + chunk.count
            if end // size > chunk.start // size and chunk.residence == sequence.residence:
                self._pages.share(sequence.id, end)
            if chunk.samples:
                sequence.in_flight -= 1
                sequence.append(outcome.tokens[sequence.id], outcome.logprobs.get(sequence.id))
                if sequence.finish_reason is not None:
                    self._leave(sequence)
                    ended.append(sequence)
        return ended

    def _set_back(self, sequence: Sequence) -> None:
        """Compute a sequence again from its start, and whatever is in flight of it."""
        for step in self._launched:
            for chunk in step:
                chunk.is_void |= chunk.sequence is sequence
        if sequence.status == "running":
            self._evict(sequence)
        if sequence.status != "waiting":
            sequence.status = "waiting"
            self._waiting.add(sequence)
        sequence.in_flight = 0
        sequence.is_suspect = True
        self.left.append(sequence.id)

    def _leave(self, sequence: Sequence) -> None:
        if sequence.status == "running":
            self._running.remove(sequence)
            self._pages.close(sequence.id)
        elif sequence.status == "waiting":
            self._waiting.remove(sequence)
        sequence.status = "ended"
        self.left.append(sequence.id)
