"""The scheduler: which tokens of which sequences run in the next step."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from cleave.errors import RequestError
from cleave.kvcache.budget import pages_for
from cleave.kvcache.page_manager import PageManager
from cleave.runtime.queue import UrgencyQueue
from cleave.runtime.request import FinishReason
from cleave.runtime.sequence import Sequence
from cleave.runtime.step import ScheduledChunk, Step, StepOutcome

PLACES_PER_PRIORITY = 1000


@dataclass(slots=True)
class _Draft:
    """A step being put together."""

    budget: int
    """Tokens that it can still take."""
    room: int
    """Available pages that it has not promised."""
    outstanding: int
    """Pages that the running sequences lack for the tokens they have, promised ones included."""
    chunks: dict[int, ScheduledChunk] = field(default_factory=dict)


class Scheduler:
    """Decides; runs nothing, does no I/O, reads no clock, starts no thread. The same calls give the
    same steps.

    **Order.** First come, first served, with priorities: a lower `priority` is more urgent, and each
    level is worth `places_per_priority` places in the queue. So there is one total order, fixed when a
    request arrives, and only so many later requests can pass an earlier one: nobody starves.

    **Step.** One token of every sequence that is decoding comes first, so that a long prompt never
    stalls the others; then prompts, the most urgent first, in chunks that fill the token budget.

    **Admission.** The most urgent waiting sequence is admitted when pages are available for all of its
    tokens, for those that running sequences still lack, and one more for each running sequence. Nothing
    is held back for what it may grow to. Nobody passes it meanwhile. Where it is more urgent than running
    sequences, and their pages or their place would do, they are preempted for it.

    **Preemption.** Where a running sequence lacks a page, the least urgent one (of equals the newest)
    gives all of its pages back and waits, in its old place, to be computed again; much of it is usually
    still in the prefix cache.

    The most urgent unfinished sequence is in every step: it can take the pages of all others, and `add`
    refuses what would not fit alone. So something always moves on, and a sequence that was preempted
    comes back as soon as it is the most urgent, if not before.
    """

    def __init__(
        self,
        pages: PageManager,
        *,
        max_tokens: int,
        max_sequences: int,
        places_per_priority: int = PLACES_PER_PRIORITY,
    ) -> None:
        """At most `max_tokens` rows a step and `max_sequences` running at once, over the KV pages of
        `pages`, where the scheduler alone opens and closes its sequences.
        """
        self._pages = pages
        self._max_tokens = max_tokens
        # One row is left for a prompt whenever all of the others decode.
        self._max_sequences = max(1, min(max_sequences, max_tokens - 1))
        self._places_per_priority = places_per_priority
        self._arrivals = 0
        self._waiting = UrgencyQueue()
        self._running = UrgencyQueue()
        self._in_flight: Step = ()
        self._called_off: dict[int, tuple[FinishReason, str | None]] = {}
        self._preemptions = 0

    @property
    def is_idle(self) -> bool:
        """Whether nothing is left to do."""
        return not self._waiting and not self._running

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

    def schedule(self) -> Step:
        """The next step; empty only where nothing is left to do. It must be committed."""
        if self._in_flight:
            raise RuntimeError("the step before was not committed")
        draft = _Draft(self._max_tokens, self._pages.available_pages, 0)
        prompts = self._decode(draft)
        while draft.budget:
            head = self._waiting.first if self._waiting else None
            is_next = head is not None and (not prompts or head.urgency < prompts[0].urgency)
            if head is not None and is_next and self._admit(head, draft):
                self._prefill(head, draft)
            elif prompts:
                sequence = prompts.popleft()
                if sequence.status == "running":
                    self._prefill(sequence, draft)
            else:
                break
        self._in_flight = tuple(draft.chunks.values())
        return self._in_flight

    def commit(self, outcome: StepOutcome) -> list[Sequence]:
        """Take in what came of the step; gives back the sequences that ended, in its order.

        A chunk counts as computed where the attention server has committed it, and is scheduled again
        where not: after a step that was broken off, this brings both into line.
        """
        step, self._in_flight = self._in_flight, ()
        ended = []
        length_of = self._pages.length
        for chunk in step:
            sequence = chunk.sequence
            end = chunk.start + chunk.count
            if length_of(sequence.id) == end:
                sequence.cached = end
                sequence.prompt_logprobs += outcome.prompt_logprobs.get(sequence.id, ())
                if chunk.samples:
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

        One that is in the step under way ends when that is committed; one that has ended stays as it is.
        """
        if sequence.status == "ended":
            return False
        if any(chunk.sequence is sequence for chunk in self._in_flight):
            self._called_off[sequence.id] = (reason, error)
            return False
        sequence.finish(reason, error)
        if sequence.status != "new":
            self._leave(sequence)
        return True

    def _decode(self, draft: _Draft) -> deque[Sequence]:
        """One token of every sequence that is decoding; gives back those that are not, in order."""
        prompts: deque[Sequence] = deque()
        page_size = self._pages.page_size
        lacking: list[Sequence] = []
        for sequence in self._running:
            start = sequence.cached
            if start + 1 < sequence.length:
                prompts.append(sequence)
                draft.outstanding += self._missing(sequence)
            elif start % page_size:
                draft.chunks[sequence.id] = ScheduledChunk(sequence, start, 1, True)
            else:
                lacking.append(sequence)
        draft.budget -= len(draft.chunks)
        draft.outstanding += len(lacking)
        for sequence in lacking:
            while sequence.status == "running" and not draft.room:
                self._preempt(self._running.last, draft)
            if sequence.status == "running":
                draft.room -= 1
                self._put(sequence, 1, draft)
        return prompts

    def _prefill(self, sequence: Sequence, draft: _Draft) -> None:
        """As many tokens of a prompt as budget and pages allow; at least one of the most urgent."""
        wanted = min(sequence.pending, draft.budget)
        count = self._fitting(sequence, wanted, draft.room)
        while not count and self._running.last is not sequence:
            self._preempt(self._running.last, draft)
            count = self._fitting(sequence, wanted, draft.room)
        if count:
            draft.room -= self._new_pages(sequence.cached, count)
            self._put(sequence, count, draft)

    def _admit(self, head: Sequence, draft: _Draft) -> bool:
        """Let a waiting sequence run if it fits, at the expense of less urgent ones if that is enough."""
        while not self._fits(head, draft):
            if not self._would_fit(head, draft):
                return False
            self._preempt(self._running.last, draft)
        promised = self._pages.available_pages - draft.room
        self._waiting.remove(head)
        head.cached = self._pages.open(head.id, head.keys)
        head.status = "running"
        if head.found is None:
            head.found = head.cached
        self._running.add(head)
        draft.room = self._pages.available_pages - promised
        draft.outstanding += self._missing(head)
        return True

    def _fits(self, head: Sequence, draft: _Draft) -> bool:
        # With nothing running this is what `add` has checked, so the most urgent always comes in.
        running = len(self._running)
        if running >= self._max_sequences:
            return False
        left = self._pages.available_pages - draft.outstanding - running
        return left > 0 and self._pages.cost(head.length, head.keys) <= left

    def _would_fit(self, head: Sequence, draft: _Draft) -> bool:
        """Whether it might fit without the less urgent ones, taking all of their pages for their own."""
        if not self._running or self._running.last.urgency < head.urgency:
            return False
        running = len(self._running)
        left = self._pages.available_pages - draft.outstanding - running
        cost = self._pages.cost(head.length, head.keys)
        for victim in reversed(self._running):
            if victim.urgency < head.urgency:
                return False
            running -= 1
            left += pages_for(victim.cached, self._pages.page_size) + self._missing(victim) + 1
            if running < self._max_sequences and cost <= left:
                return True
        return False

    def _preempt(self, victim: Sequence, draft: _Draft) -> None:
        """Take the pages of a running sequence, and its chunk of the step if it has one."""
        promised = self._pages.available_pages - draft.room
        chunk = draft.chunks.pop(victim.id, None)
        if chunk is not None:
            draft.budget += chunk.count
            promised -= self._new_pages(chunk.start, chunk.count)
        draft.outstanding -= self._missing(victim)
        self._running.remove(victim)
        self._pages.close(victim.id)
        victim.cached = 0
        victim.preemptions += 1
        self._preemptions += 1
        victim.status = "waiting"
        self._waiting.add(victim)
        draft.room = self._pages.available_pages - promised

    def _put(self, sequence: Sequence, count: int, draft: _Draft) -> None:
        start = sequence.cached
        draft.chunks[sequence.id] = ScheduledChunk(sequence, start, count, start + count == sequence.length)
        draft.budget -= count

    def _leave(self, sequence: Sequence) -> None:
        if sequence.status == "running":
            self._running.remove(sequence)
            self._pages.close(sequence.id)
        else:
            self._waiting.remove(sequence)
        sequence.status = "ended"

    def _missing(self, sequence: Sequence) -> int:
        """Pages that a running sequence lacks for the tokens it has."""
        return self._new_pages(sequence.cached, sequence.pending)

    def _new_pages(self, start: int, count: int) -> int:
        return pages_for(start + count, self._pages.page_size) - pages_for(start, self._pages.page_size)

    def _fitting(self, sequence: Sequence, wanted: int, room: int) -> int:
        """How many of the next tokens have a place with `room` more pages."""
        pages = pages_for(sequence.cached, self._pages.page_size) + room
        return min(wanted, pages * self._pages.page_size - sequence.cached)
