"""A conversation in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TextIO

from cleave.errors import CleaveError
from cleave.runtime.llm import LLM
from cleave.runtime.request import SamplingParams

_PROMPT = "> "
_HELP = """\
/system TEXT   begin anew under a system message; without TEXT, without one
/reset         begin anew
/stats         the KV cache, and tokens so far
/exit          leave, as Ctrl-D does
Ctrl-C stops an answer; what it said so far stays in the conversation."""


class Repl:
    """Reads a line, streams the answer, remembers both."""

    def __init__(
        self,
        llm: LLM,
        params: SamplingParams | None = None,
        *,
        system: str | None = None,
        read: Callable[[str], str] = input,
        out: TextIO | None = None,
    ) -> None:
        """`read` shows a prompt and gives back a line; it raises EOFError where there are no more."""
        self._llm = llm
        self._params = params
        self._read = read
        self._out = out or sys.stdout
        self._system = [{"role": "system", "content": system}] if system else []
        self._messages: list[dict[str, str]] = []
        self._commands: dict[str, Callable[[str], None]] = {
            "/help": lambda _: self._say(_HELP),
            "/system": self._set_system,
            "/reset": lambda _: self._reset(),
            "/stats": lambda _: self._say(self._stats()),
        }

    def run(self) -> None:
        """Go on until the user leaves. Raises RequestError where the checkpoint has no chat template."""
        self._llm.chat_prompt([*self._system, {"role": "user", "content": ""}])
        while True:
            try:
                line = self._read(_PROMPT).strip()
            except EOFError:
                self._say("")
                return
            except KeyboardInterrupt:
                self._say("\n(Ctrl-D or /exit leaves)")
                continue
            if line in ("/exit", "/quit", "/bye"):
                return
            if line.startswith("/"):
                name, _, rest = line.partition(" ")
                command = self._commands.get(name) or self._unknown(name)
                command(rest.strip())
            elif line:
                self._answer(line)

    def _answer(self, text: str) -> None:
        """Stream the answer to one message; a failed one is not remembered."""
        messages = [*self._system, *self._messages, {"role": "user", "content": text}]
        said = ""
        try:
            with self._llm.stream_chat(messages, self._params) as stream:
                for chunk in stream:
                    said += chunk.text
                    self._out.write(chunk.text)
                    self._out.flush()
                    if chunk.error is not None:
                        self._say(f"\nerror: {chunk.error}")
                        return
        except KeyboardInterrupt:
            self._out.write(" (stopped)")
        except CleaveError as error:
            hint = "; /reset begins anew" if self._messages else ""
            self._say(f"error: {error}{hint}")
            return
        self._say("")
        self._messages += [{"role": "user", "content": text}, {"role": "assistant", "content": said}]

    def _set_system(self, text: str) -> None:
        self._system = [{"role": "system", "content": text}] if text else []
        self._reset()

    def _reset(self) -> None:
        self._messages = []
        self._say("(a new conversation)")

    def _stats(self) -> str:
        stats = self._llm.stats()
        return (
            f"{stats.pages_used} of {stats.pages} pages used, {stats.pages_cached} kept for prefixes; "
            f"{stats.prompt_tokens} prompt tokens computed, {stats.cached_prompt_tokens} found in the cache, "
            f"{stats.generated_tokens} generated"
        )

    def _unknown(self, name: str) -> Callable[[str], None]:
        return lambda _: self._say(f"there is no command {name}; /help lists them")

    def _say(self, text: str) -> None:
        self._out.write(text + "\n")
        self._out.flush()
