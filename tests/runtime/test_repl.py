"""The conversation in the terminal: by lines, and in a real terminal with a real Ctrl-C."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cleave import LLM, SamplingParams
from cleave.errors import RequestError
from cleave.runtime.repl import Repl

QUESTION = "What is the capital of France?"
ANSWER = "The capital of France is Paris."


@pytest.fixture(scope="module")
def llm(demo_artifact: Path) -> Iterator[LLM]:
    with LLM(demo_artifact) as loaded:
        yield loaded


def talk(llm: LLM, *lines: str | type[BaseException], params: SamplingParams | None = None) -> str:
    """What is shown to a user who types these lines, without the lines themselves."""
    out = io.StringIO()
    pending = [*lines, EOFError]

    def read(prompt: str) -> str:
        line = pending.pop(0)
        if isinstance(line, str):
            return line
        raise line

    Repl(llm, params or SamplingParams(max_tokens=64), read=read, out=out).run()
    assert not pending or lines[-1] in ("/exit", "/quit", "/bye")
    return out.getvalue()


def test_it_answers(llm: LLM) -> None:
    assert talk(llm, QUESTION, "", "   ", "/exit") == f"{ANSWER}\n"


def test_it_remembers_what_was_said(llm: LLM) -> None:
    seen = []
    prompt_of = llm.chat_prompt
    stream_chat = llm.stream_chat

    def watched(messages: list[dict[str, str]], params: SamplingParams) -> object:
        seen.append([dict(message) for message in messages])
        return stream_chat(messages, params)

    llm.stream_chat = watched  # type: ignore[method-assign, assignment]
    try:
        talk(llm, QUESTION, QUESTION, "/system Be brief.", QUESTION, "/reset", QUESTION)
    finally:
        llm.stream_chat = stream_chat  # type: ignore[method-assign]
    turn = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]
    assert seen[0] == turn[:1]
    assert seen[1] == [*turn, turn[0]]
    assert seen[2] == [{"role": "system", "content": "Be brief."}, turn[0]] == seen[3]
    assert prompt_of(seen[1])


def test_commands(llm: LLM) -> None:
    out = talk(llm, "/help", "/nonsense x", KeyboardInterrupt, "/stats")
    assert "Ctrl-C stops an answer" in out
    assert "there is no command /nonsense; /help lists them" in out
    assert "Ctrl-D or /exit leaves" in out
    assert "pages used" in out


def test_a_conversation_that_fills_the_context_can_go_on_anew(llm: LLM) -> None:
    out = talk(llm, QUESTION, "word " * 5000, "/reset", QUESTION)
    assert "error: the prompt has" in out
    assert "/reset begins anew" in out
    assert out.endswith(f"(a new conversation)\n{ANSWER}\n\n")


def test_a_checkpoint_that_cannot_chat_says_so_at_once(llm: LLM) -> None:
    chat = llm.model.chat
    template, chat._plain = chat._plain, None
    try:
        with pytest.raises(RequestError, match="no chat template"):
            talk(llm, QUESTION)
    finally:
        chat._plain = template


class Terminal:
    """A command in a terminal of its own."""

    def __init__(self, *command: str) -> None:
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            os.execv(command[0], command)
        self.shown = ""

    def wait_for(self, text: str, start: int = 0, seconds: float = 90.0) -> int:
        """Read until `text` is shown after `start`; where it ends."""
        deadline = time.monotonic() + seconds
        while text not in self.shown[start:]:
            left = deadline - time.monotonic()
            ready, _, _ = select.select([self._fd], [], [], max(left, 0))
            assert ready, f"{text!r} did not come: {self.shown!r}"
            try:
                self.shown += os.read(self._fd, 4096).decode(errors="replace")
            except OSError:
                raise AssertionError(f"{text!r} did not come before the end: {self.shown!r}") from None
        return self.shown.index(text, start) + len(text)

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def ended(self) -> int:
        """The exit code."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@pytest.mark.slow
def test_in_a_terminal_ctrl_c_stops_the_answer_and_ctrl_d_leaves(demo_artifact: Path) -> None:
    terminal = Terminal(
        sys.executable, "-m", "cleave", "run", "--model", str(demo_artifact), "--chat",
        "--ignore_eos", "--max_new_tokens", "3500",
    )  # fmt: skip
    try:
        at = terminal.wait_for("> ")
        terminal.type(f"{QUESTION}\n")
        at = terminal.wait_for(ANSWER, at)
        terminal.type("\x03")
        at = terminal.wait_for("(stopped)", at)
        at = terminal.wait_for("> ", at)
        used = ""
        while used != "0":  # the step under way ends first
            terminal.type("/stats\n")
            begin, at = at, terminal.wait_for("pages used", at)
            used = re.findall(r"(\d+) of \d+ pages used", terminal.shown[begin:at])[0]
            at = terminal.wait_for("> ", at)
        terminal.type("\x1b[A\n")  # arrow up: the line before
        at = terminal.wait_for("pages used", at)
        at = terminal.wait_for("> ", at)
        terminal.type("\x04")
        assert terminal.ended() == 0
    except BaseException:
        os.kill(terminal.pid, signal.SIGKILL)
        raise
