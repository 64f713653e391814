"""The scheduler: which tokens of which sequences run in the next step."""

from __future__ import annotations

from collections import deque

from cleave.kvcache.budget import pages_for
from cleave.runtime.cuts import fixed_cut, scored_cut
from cleave.runtime.draft import Draft
from cleave.runtime.ledger import Ledger
from cleave.runtime.sequence import Sequence
from cleave.runtime.step import Step


class Scheduler(Ledger):
    """Decides; runs nothing, does no I/O, reads no clock, starts no thread. The same calls give the
    same steps.

    **Order.** First come, first served, with priorities: a lower `priority` is more urgent, and each
    level is worth `places_per_priority` places in the queue. So there is one total order, fixed when a
    request arrives, and only so many later requests can pass an earlier one: nobody starves.

    **Step.** One token of every sequence that is decoding comes first, so that a long prompt never
    stalls the others; then prompts, the most urgent first, in chunks that fill the token budget. Of prompts
    whose logprobs are asked for a step scores so many tokens only, since their logits take memory.

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

    **Ahead.** A step may be launched before it is known what comes of it, and the next one scheduled
    meanwhile: a token in flight counts for length and pages, and a sequence whose last token is in flight
    is left out. What ends while its next token is in flight ends at once, and that token is dropped; its
    pages can be used again, since steps run in the order of their launch.
    """

    def schedule(self) -> Step:
        """The next step: to be committed, launched or withdrawn. It is empty only where nothing is left to
        do, or nothing can be done before a launched step is committed.
        """
        if self._scheduled:
            raise RuntimeError("the step before was not committed")
        room = self._pages.available_pages
        draft = Draft(self._pages.page_size, self._max_tokens, room, self._scored_rows)
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
        self._scheduled = tuple(draft.chunks.values())
        return self._scheduled

    def _decode(self, draft: Draft) -> deque[Sequence]:
        """One token of every sequence that is decoding; gives back those that are not, in order."""
        prompts: deque[Sequence] = deque()
        page_size = draft.page_size
        lacking: list[Sequence] = []
        for sequence in self._running:
            start = sequence.cached
            if start + 1 < sequence.length:
                prompts.append(sequence)
                draft.outstanding += draft.missing(sequence)
            elif sequence.is_exhausted:
                continue
            elif start % page_size:
                draft.put(sequence, 1)
            else:
                lacking.append(sequence)
        draft.outstanding += len(lacking)
        for sequence in lacking:
            while sequence.status == "running" and not draft.room:
                self._preempt(self._running.last, draft)
            if sequence.status == "running":
                draft.room -= 1
                draft.put(sequence, 1)
        return prompts

    def _prefill(self, sequence: Sequence, draft: Draft) -> None:
        """As many tokens of a prompt as budget and pages allow; at least one of the most urgent."""
        wanted = self._cut(sequence, min(sequence.pending, draft.budget), draft)
        count = self._cut(sequence, draft.fitting(sequence, wanted), draft)
        while wanted and not count and self._running.last is not sequence:
            self._preempt(self._running.last, draft)
            count = self._cut(sequence, draft.fitting(sequence, wanted), draft)
        if count:
            draft.room -= draft.new_pages(sequence.cached, count)
            draft.put(sequence, count)

    def _cut(self, sequence: Sequence, count: int, draft: Draft) -> int:
        count = scored_cut(sequence, count, draft.scores)
        return fixed_cut(sequence, count) if self._fixed_cuts else count

    def _admit(self, head: Sequence, draft: Draft) -> bool:
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
        draft.outstanding += draft.missing(head)
        return True

    def _fits(self, head: Sequence, draft: Draft) -> bool:
        # With nothing running this is what `add` has checked, so the most urgent always comes in.
        running = len(self._running)
        if running >= self._max_sequences:
            return False
        left = self._pages.available_pages - draft.outstanding - running
        return left > 0 and self._pages.cost(head.length, head.keys) <= left

    def _would_fit(self, head: Sequence, draft: Draft) -> bool:
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
            left += pages_for(victim.cached, draft.page_size) + draft.missing(victim) + 1
            if running < self._max_sequences and cost <= left:
                return True
        return False

    def _preempt(self, victim: Sequence, draft: Draft) -> None:
        """Take the pages of a running sequence, and its chunk of the step if it has one."""
        promised = self._pages.available_pages - draft.room - draft.take(victim)
        draft.outstanding -= draft.missing(victim)
        self._evict(victim)
        if victim.is_exhausted:
            victim.status = "leaving"
        else:
            victim.preemptions += 1
            self._preemptions += 1
            victim.status = "waiting"
            self._waiting.add(victim)
        draft.room = self._pages.available_pages - promised
