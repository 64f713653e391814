"""Run a scenario, and look at everything after every step."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import partial

from cleave.errors import RequestError
from cleave.kvcache.keys import PageKeys
from cleave.kvcache.server import AttentionServer
from cleave.kvcache.spec import AttentionSpec
from cleave.runtime import stepper as stepper_module
from cleave.runtime.sequence import Sequence
from cleave.runtime.step import Step
from cleave.runtime.step_loop import EndedStep, StepLoop
from simulation.device import DeviceBackend, DeviceEngine, DeviceTokens, Stream
from simulation.fakes import LAYERS, Answer, FakeBackend, FakeEngine, Faults, answer_alone, recorded
from simulation.scenario import RequestPlan, Scenario
from simulation.watched import Violation, WatchedScheduler, WatchedStepper, require

_SPEC = AttentionSpec(1, 1, 8, 1.0)
_MOST_STEPS = 5000
SCORED_ROWS = 5
"""Of a step: fewer than many of its prompts have."""


@dataclass
class Report:
    """What happened, to see that the simulation meets what it is for."""

    counts: Counter[str] = field(default_factory=Counter)


class Simulation:
    """One scenario under way."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.report = Report()
        faults = Faults(scenario.faults)
        stream = Stream()
        self.server = AttentionServer(
            [_SPEC] * LAYERS,
            backend=partial(DeviceBackend, stream=stream) if scenario.ahead else FakeBackend,
            num_pages=scenario.num_pages,
            page_size=scenario.page_size,
            max_position=4096,
            max_tokens=scenario.max_tokens,
            faults=faults,
        )
        self.pages = self.server.pages
        self.scheduler = WatchedScheduler(
            self.pages,
            max_tokens=scenario.max_tokens,
            max_sequences=scenario.max_sequences,
            places_per_priority=scenario.places_per_priority,
            scored_rows=SCORED_ROWS,
        )
        self.scheduler.scheduled = self._scheduled
        self.scheduler.ended = self._end
        self.stepper = WatchedStepper(
            DeviceEngine(faults, stream) if scenario.ahead else FakeEngine(faults),
            self.server,
            DeviceTokens(stream) if scenario.ahead else None,
            self._fetching,
        )
        self.loop = StepLoop(self.scheduler, self.stepper)
        self.faults = faults
        self.accepted: dict[int, tuple[RequestPlan, Sequence]] = {}
        self.refused: set[int] = set()
        self.called_off: set[int] = set()
        self.ended: Counter[int] = Counter()
        self.seen: dict[int, list[int]] = {}
        self.idle: dict[tuple[int, bytes], int] = {}
        """(page, key) that is idle -> the step since when."""
        self.now = 0

    def run(self) -> Report:
        """Run to the end. Raises Violation, or whatever the parts under test raise."""
        requests = self.scenario.requests
        last = max(max(request.arrives, request.aborted or 0) for request in requests)
        for now in range(_MOST_STEPS):
            self.now = now
            self._arrive(now)
            self._abort(now, in_flight=False)
            if not self.loop.is_idle:
                self._step()
            self._check_state()
            if self.loop.is_idle and now >= last:
                self._check_end()
                return self.report
        raise Violation(f"after {_MOST_STEPS} steps there are still unfinished requests")

    def _arrive(self, now: int) -> None:
        for name, request in enumerate(self.scenario.requests):
            if request.arrives != now:
                continue
            keys = PageKeys(self.scenario.page_size) if self.scenario.prefix_cache else None
            stops = frozenset((60,)) if request.stops else frozenset[int]()
            sampling = recorded(name, request, self.faults)
            if sampling is not None and sampling.prompt_logprobs is not None:
                keys = None
            sequence = Sequence(
                name, request.prompt, request.max_tokens, stops, request.priority, keys, sampling=sampling
            )
            stored = len(request.prompt) + request.max_tokens - 1
            fits = stored <= self.scenario.num_pages * self.scenario.page_size
            try:
                self.scheduler.add(sequence)
            except RequestError:
                require(not fits, f"request {name} fits and was refused")
                self.refused.add(name)
                continue
            require(fits, f"request {name} can never fit and was accepted")
            self.accepted[name] = (request, sequence)

    def _abort(self, now: int, *, in_flight: bool) -> None:
        for name, (request, sequence) in self.accepted.items():
            if request.aborted is not None and max(request.aborted, request.arrives) == now:
                if request.aborted_in_flight != in_flight:
                    continue
                had_ended = sequence.finish_reason is not None
                self.report.counts[f"aborted while {sequence.status}"] += 1
                if self.scheduler.abort(sequence):
                    require(not had_ended, f"request {name} was ended twice")
                    self._end(sequence)
                if not had_ended:
                    self.called_off.add(name)

    def _scheduled(self, step: Step) -> None:
        self._check_schedule(step)
        if not self.scenario.ahead:
            self._abort(self.now, in_flight=True)

    def _fetching(self) -> None:
        self._abort(self.now, in_flight=True)

    def _step(self) -> None:
        runs, launches = self.faults.runs, self.stepper.launches
        most = 1
        try:
            for end in self.loop.advance():
                self._touch()
                self._check_ended(end)
                most += stepper_module._runs_allowed(len(end.step))
        except KeyboardInterrupt:
            self.report.counts["interrupts"] += 1
            most = 1000
        if self.stepper.violation is not None:
            raise self.stepper.violation
        self._touch()
        runs = self.faults.runs - runs
        self.report.counts["runs"] += runs
        self.report.counts["launches"] += self.stepper.launches - launches
        self.report.counts["steps searched"] += runs > 1 + self.scenario.ahead
        require(runs <= most, f"a step took {runs} runs; {most} are allowed")
        free = list(self.pages._pool._free)
        self.server._backend.spoil(free)

    def _check_ended(self, end: EndedStep) -> None:
        self.report.counts["steps"] += 1
        self.report.counts["requests computed again"] += len(end.outcome.lost)
        for chunk in end.step:
            name = chunk.sequence.id
            moved_on = chunk.is_stored or name in end.outcome.errors
            require(moved_on or name in self.stepper._put_off, f"request {name} was left out of its step")

    def _end(self, sequence: Sequence) -> None:
        self.ended[sequence.id] += 1

    def _check_schedule(self, step: Step) -> None:
        scenario = self.scenario
        require(sum(chunk.count for chunk in step) <= scenario.max_tokens, "a step is over its token budget")
        require(sum(len(chunk.scored) for chunk in step) <= SCORED_ROWS, "a step scores too many tokens")
        require(all(chunk.count > 0 for chunk in step), "a chunk is empty")
        require(self.scheduler.running <= scenario.max_sequences, "too many sequences run at once")
        for chunk in step:
            require(
                chunk.end < chunk.sequence.max_length, f"request {chunk.sequence.id} computes its last token"
            )
        rest = [sequence for _, sequence in self.accepted.values() if sequence.finish_reason is None]
        unfinished = [sequence for sequence in rest if not sequence.is_exhausted]
        if unfinished:
            first = min(unfinished, key=lambda sequence: sequence.urgency)
            here = any(chunk.sequence is first for chunk in step)
            # Whoever only waits for the last token keeps its place until then.
            here |= any(sequence.is_exhausted for sequence in self.scheduler._running)
            require(here, f"request {first.id} is the most urgent and is not in the step")
        self._touch()
        decoding = [s for s in self.scheduler._running if s.pending == 1]
        names = {chunk.sequence.id for chunk in step}
        require(all(s.id in names for s in decoding), "a sequence that is decoding was stalled")
        for sequence in rest:
            is_open, runs = self.pages.is_open(sequence.id), sequence.status == "running"
            require(is_open == runs, f"sequence {sequence.id} is {sequence.status}, its pages are not")

    def _check_state(self) -> None:
        pages = self.pages
        pages.check()
        self._check_evictions()
        held = {page for table in pages._tables.values() for page in table.pages.tolist()}
        total = pages.free_pages + pages.cached_pages + len(held)
        require(total == pages.num_pages, f"free, cached and used pages are {total} of {pages.num_pages}")
        for name, (_, sequence) in self.accepted.items():
            seen = self.seen.setdefault(name, [])
            require(sequence.output[: len(seen)] == seen, f"the stream of request {name} was torn")
            seen += sequence.output[len(seen) :]
            require(
                self.ended[name] == (sequence.finish_reason is not None),
                f"request {name} has {self.ended[name]} terminal events: {sequence.finish_reason}",
            )
            require(
                name not in self.called_off or sequence.finish_reason is not None,
                f"request {name} was called off and goes on",
            )
            if sequence.status == "running":
                require(sequence.cached == pages.length(name), f"sequence {name} and its table disagree")

    def _touch(self) -> None:
        """Pages that are held now are not those that were idle before."""
        held = {page for table in self.pages._tables.values() for page in table.pages.tolist()}
        self.idle = {entry: since for entry, since in self.idle.items() if entry[0] not in held}

    def _check_evictions(self) -> None:
        """What was evicted had been idle at least as long as anything that was not."""
        prefix = self.pages._prefix
        findable = {(page, key) for key, page in prefix._pages.items()}
        idle = {entry for entry in findable if entry[0] in prefix._idle}
        left = [since for entry, since in self.idle.items() if entry in idle]
        for entry, since in self.idle.items():
            if entry not in findable:
                require(since <= min(left, default=since), f"page {entry[0]} was evicted before older ones")
        self.idle = {entry: self.idle.get(entry, self.now) for entry in idle}

    def _check_end(self) -> None:
        pages = self.pages
        require(not pages._tables, f"sequences {list(pages._tables)} are still open")
        require(pages.available_pages == pages.num_pages, "pages are lost")
        names = set(range(len(self.scenario.requests)))
        require(set(self.accepted) | self.refused == names, "a request was forgotten")
        for name, (request, sequence) in self.accepted.items():
            self._check_answer(name, request, sequence, answer_alone(request))
            self.report.counts["preemptions"] += sequence.preemptions
        self.report.counts["found tokens"] += pages.stats.found
        self.report.counts["evicted pages"] += pages.stats.evicted_pages
        self.report.counts["failed runs"] += self.stepper.failed
        self.report.counts["refused"] += len(self.refused)
        pages.clear_prefix_cache()
        require(pages.free_pages == pages.num_pages, "pages are lost in the prefix cache")

    def _check_answer(self, name: int, request: RequestPlan, sequence: Sequence, alone: Answer) -> None:
        reason, tokens = sequence.finish_reason, tuple(sequence.output)
        if sequence.sampling is not None:
            self._check_sampling(name, request, sequence, tokens)
        self.report.counts[f"ended by {reason}"] += 1
        if reason == "abort":
            require(request.aborted is not None, f"request {name} was aborted by nobody")
            require(tokens == alone.tokens[: len(tokens)], f"request {name}: {tokens}, alone {alone}")
            return
        require(
            (reason, tokens) == (alone.reason, alone.tokens),
            f"request {name} ended by {reason} ({sequence.error}) with {tokens}; alone it is {alone}",
        )
        require((sequence.error is not None) == (reason == "error"), f"request {name}: {sequence.error}")

    def _check_sampling(
        self, name: int, request: RequestPlan, sequence: Sequence, tokens: tuple[int, ...]
    ) -> None:
        """What was drawn and undone, or computed again, must leave nothing behind."""
        sampling = sequence.sampling
        accepted = sampling.constraint.accepted
        require(accepted == list(tokens), f"request {name} accepted {accepted}, its tokens are {tokens}")
        require(sampling.generated == len(tokens), f"request {name} counts {sampling.generated} tokens")
        logged = [entry.token for entry in sequence.logprobs]
        require(logged == list(tokens), f"request {name} has logprobs of {logged}, its tokens are {tokens}")
        scored = tuple(entry.token for entry in sequence.prompt_logprobs)
        wanted = request.prompt[1:] if sampling.prompt_logprobs is not None else ()
        self.report.counts["prompt tokens scored"] += len(scored)
        require(scored == wanted[: len(scored)], f"request {name} has scored {scored} of {wanted}")
        require(len(scored) == len(wanted) or not tokens, f"request {name} has scored {scored} of {wanted}")
