"""The engine thread: the one that runs steps, for any number of threads and event loops that ask."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import TypeVar

from cleave.errors import EngineError, RequestError, reason
from cleave.runtime.engine_call import EngineCall, EngineState
from cleave.runtime.engines.cuda import make_current
from cleave.runtime.generation import Answer, Generation
from cleave.runtime.mailbox import Wakeups, wake
from cleave.runtime.model import Model
from cleave.runtime.observer import EngineObserver, Observers
from cleave.runtime.request import Chunk, FinishReason
from cleave.runtime.scheduler import Scheduler
from cleave.runtime.sequence import Sequence as TokenSequence
from cleave.runtime.stats import Stats, StatsCounter
from cleave.runtime.step_loop import StepLoop
from cleave.runtime.stepper import Stepper

_log = logging.getLogger("cleave")
_UNREAD = "its reader left too many tokens unread; read faster, or raise max_unread_tokens"
_Command = Callable[[Wakeups], None]
T = TypeVar("T")


class EngineThread:
    """Owns the step loop of one model. Its public methods may be called from any thread.

    Others leave commands, which are carried out before the next step is started, and read what the steps
    yield from the reader of their generation. The thread waits for nobody but the engine.
    """

    def __init__(self, model: Model) -> None:
        """Start the thread. It ends with `close`."""
        self._model = model
        self._scheduler = Scheduler(
            model.attention.pages,
            max_tokens=model.max_tokens_per_step,
            max_sequences=model.options.max_sequences,
            fixed_cuts=model.has_fixed_cuts,
        )
        stepper = Stepper(model.engine, model.attention, model.device_tokens)
        self._loop = StepLoop(self._scheduler, stepper, ahead=model.options.ahead)
        self._counter = StatsCounter(self._scheduler, model.attention.pages)
        self._observers = Observers()
        self._answers: dict[int, tuple[Generation, Answer]] = {}
        self._state = EngineState(model.attention.pages, self._answers)
        self._work = threading.Condition()
        # Guarded by `_work`: what others write.
        self._commands: list[_Command] = []
        self._generations: dict[str, Generation] = {}
        self._closing = False
        self._failure: str | None = None
        self._then: Callable[[], None] | None = None
        self._thread = threading.Thread(target=self._main, name="cleave-engine", daemon=True)
        self._thread.start()

    def submit(self, generations: Sequence[Generation]) -> None:
        """Queue them; they start between the same two steps.

        Raises RequestError where a request id is in use, EngineError where nothing runs any more.
        """
        with self._work:
            self._check_open()
            names = [generation.request_id for generation in generations]
            for index, name in enumerate(names):
                if name in self._generations or name in names[:index]:
                    raise RequestError(f"request_id {name!r} is in use; give each request its own")
            self._generations.update(zip(names, generations, strict=True))
            self._observers.submitted(generations)
            self._post(partial(self._start, generations))

    def abort(self, request_id: str) -> None:
        """Call a request off; its answers end with the finish reason "abort" before the next step is started.

        Raises RequestError where no such request is under way.
        """
        with self._work:
            generation = self._generations.get(request_id)
            if generation is None:
                raise RequestError(f"no request {request_id!r} is under way; it may have ended already")
            self._post(partial(self._end, generation, "abort", None))

    def discard(self, generation: Generation) -> None:
        """Call a generation off that nobody reads any more; nothing happens where it has ended."""
        with self._work:
            if self._generations.get(generation.request_id) is generation:
                self._post(partial(self._end, generation, "abort", None))

    def stats(self) -> Stats:
        """What is going on; never waits for a step."""
        return self._counter.snapshot()

    def call(self, function: Callable[[EngineState], T]) -> Future[T]:
        """Run a function in the engine thread between two steps, where all it sees belongs together.

        The engine waits for it. What it raises is raised by the future, and so is EngineError where the
        model is closed meanwhile; where nothing runs any more EngineError is raised at once.
        """
        call = EngineCall(function, self._state)
        with self._work:
            self._check_open()
            self._post(call)
        return call.future

    def observe(self, observer: EngineObserver) -> None:
        """Tell an observer of the steps, and of the requests that are submitted from now on."""
        self._observers.add(observer)

    def ignore(self, observer: EngineObserver) -> None:
        """Tell an observer nothing more."""
        self._observers.remove(observer)

    @property
    def failure(self) -> str | None:
        """Why the thread had to end; None while it runs, and where it was closed."""
        return self._failure

    def wait_until_idle(self, timeout: float | None = None) -> bool:
        """Whether nothing is under way any more, after at most `timeout` seconds; None: however long."""
        with self._work:
            return self._work.wait_for(lambda: not self._generations, timeout)

    def close(self, then: Callable[[], None] | None = None) -> None:
        """End the step under way, call everything off, end the thread, and call `then`.

        This thread itself may be who asks: an observer, or the garbage collector that finds an abandoned
        model. Then it goes on to the end of its step, and `then` is the last that it calls.
        """
        is_asking = threading.current_thread() is self._thread
        with self._work:
            self._closing = True
            if is_asking:
                self._then = then
            self._work.notify_all()
        if not is_asking:
            self._thread.join()
            if then is not None:
                then()

    def _check_open(self) -> None:
        if self._failure is not None:
            raise EngineError(f"the engine cannot go on: {self._failure}; load the model again")
        if self._closing:
            raise EngineError("the model is closed; load it again")

    def _post(self, command: _Command) -> None:
        self._commands.append(command)
        self._work.notify_all()

    def _main(self) -> None:
        try:
            make_current(self._model.engine.device)
            while self._turn():
                pass
            self._loop.drain()
            self._end_all("abort", "the model was closed")
        except BaseException as error:
            _log.critical("the engine thread ends", exc_info=error)
            with self._work:
                self._failure = f"{type(error).__name__}: {reason(error)}"
            self._end_all("error", self._failure)
        if self._then is not None:
            self._then()

    def _turn(self) -> bool:
        """Carry out what was asked for and start one step; False where the thread is to end."""
        with self._work:
            while not (self._commands or self._closing) and self._loop.is_idle:
                self._work.wait()
            if self._closing:
                return False
            commands, self._commands = self._commands, []
        wakeups: Wakeups = {}
        for command in commands:
            command(wakeups)
        if not self._loop.is_idle:
            self._step(wakeups)
        wake(wakeups)
        return True

    def _step(self, wakeups: Wakeups) -> None:
        for end in self._loop.advance():
            self._counter.count_step(end.step, end.outcome)
            self._observers.stepped(end.step, end.outcome, end.began)
            for chunk in end.step:
                if chunk.samples or chunk.sequence.finish_reason is not None:
                    self._report(chunk.sequence, wakeups)

    def _start(self, generations: Sequence[Generation], wakeups: Wakeups) -> None:
        for generation in generations:
            for answer in generation.answers:
                self._answers[answer.sequence.id] = (generation, answer)
            waiting = [answer for answer in generation.answers if answer not in generation.held_back]
            self._queue(waiting, wakeups)

    def _queue(self, answers: Sequence[Answer], wakeups: Wakeups) -> None:
        for answer in answers:
            if answer.finish_reason is not None:
                continue
            try:
                self._scheduler.add(answer.sequence)
            except RequestError as error:
                self._put(*self._answers[answer.sequence.id], answer.give_up("error", str(error)), wakeups)

    def _report(self, sequence: TokenSequence, wakeups: Wakeups) -> None:
        """Hand on what a sequence has generated."""
        if sequence.id not in self._answers:
            return
        generation, answer = self._answers[sequence.id]
        try:
            chunk = answer.advance()
        except Exception as error:
            _log.error("the text of request %s cannot be made", generation.request_id, exc_info=error)
            chunk = answer.give_up("error", f"{type(error).__name__}: {reason(error)}")
        if answer.finish_reason is not None and sequence.finish_reason is None:
            self._scheduler.end(sequence, answer.finish_reason)
        held_back, generation.held_back = generation.held_back, []
        self._queue(held_back, wakeups)
        self._put(generation, answer, chunk, wakeups)
        if generation.reader.is_full and not generation.is_over:
            _log.warning("request %s is called off: %s", generation.request_id, _UNREAD)
            self._end(generation, "abort", _UNREAD, wakeups)

    def _put(self, generation: Generation, answer: Answer, chunk: Chunk | None, wakeups: Wakeups) -> None:
        if chunk is None:
            return
        if chunk.finish_reason is not None:
            del self._answers[answer.sequence.id]
            self._counter.count_end(chunk.finish_reason)
            self._observers.answered(generation, answer)
            if generation.is_over:
                # Before the reader learns of it, so that its name can be used again at once.
                with self._work:
                    del self._generations[generation.request_id]
                    self._work.notify_all()
        generation.reader.put(chunk, wakeups)

    def _end(self, generation: Generation, why: FinishReason, error: str | None, wakeups: Wakeups) -> None:
        """End all answers of a generation that have not ended."""
        generation.held_back = []
        for answer in generation.answers:
            if answer.finish_reason is None:
                self._scheduler.end(answer.sequence, why, error)
                self._put(generation, answer, answer.advance(), wakeups)

    def _end_all(self, why: FinishReason, error: str) -> None:
        """Tell every reader that nothing more comes. The scheduler is not to be trusted any more."""
        with self._work:
            self._closing = True
            generations = list(self._generations.values())
            self._generations.clear()
            commands, self._commands = self._commands, []
            self._work.notify_all()
        for command in commands:
            if isinstance(command, EngineCall):
                command.refuse(error)
        wakeups: Wakeups = {}
        for generation in generations:
            for answer in generation.answers:
                chunk = answer.give_up(why, error)
                if chunk is not None:
                    self._counter.count_end(why)
                    self._observers.answered(generation, answer)
                    generation.reader.put(chunk, wakeups)
        wake(wakeups)
