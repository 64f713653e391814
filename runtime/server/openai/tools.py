"""Tools: what the template is told of them, and what the answer has to be where a call is demanded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cleave.runtime.chat import Chat
from cleave.runtime.server.errors import Refused
from cleave.runtime.server.openai.schemas import ChatRequest, Tool, ToolChoice
from cleave.runtime.server.openai.tool_parser import ToolParser
from cleave.runtime.structured.params import StructuredOutput


@dataclass(frozen=True, slots=True)
class Tools:
    """The tools of one request."""

    names: frozenset[str]
    described: list[dict[str, Any]] | None
    """For the template; None where the model shall call none."""
    demanded: StructuredOutput | None
    """The form of the call that has to be made."""

    @classmethod
    def of(cls, body: ChatRequest, chat: Chat) -> Tools:
        """The tools that a request offers. Raises Refused where they cannot be used so."""
        choice = body.tool_choice
        if not body.tools:
            if choice not in (None, "none"):
                raise Refused("validation", "tool_choice needs tools", param="tool_choice")
            return cls(frozenset(), None, None)
        if choice == "none":
            return cls(frozenset(), None, None)
        if not chat.takes_tools:
            raise Refused(
                "validation", "the checkpoint's chat template knows no tools; leave them out", param="tools"
            )
        described = [tool.model_dump(exclude_unset=True) for tool in body.tools]
        names = frozenset(tool.function.name for tool in body.tools)
        return cls(names, described, _demanded(body.tools, choice))

    def parser(self) -> ToolParser | None:
        """What finds the calls in one answer; None where there are none to find."""
        return ToolParser(self.names) if self.described else None


def _demanded(tools: Sequence[Tool], choice: str | ToolChoice | None) -> StructuredOutput | None:
    if isinstance(choice, ToolChoice):
        wanted = [tool for tool in tools if tool.function.name == choice.function.name]
        if not wanted:
            known = ", ".join(tool.function.name for tool in tools)
            raise Refused(
                "validation",
                f"there is no tool {choice.function.name!r}; there are: {known}",
                param="tool_choice",
            )
        return _call_of(_schema(wanted[0]))
    if choice == "required":
        return _call_of({"anyOf": [_schema(tool) for tool in tools]})
    return None


def _call_of(schema: dict[str, Any]) -> StructuredOutput:
    # Nobody reads the whitespace of a call, and small models never end with it.
    return StructuredOutput(json_schema=schema, disable_any_whitespace=True)


def _schema(tool: Tool) -> dict[str, Any]:
    """A call of a tool."""
    return {
        "type": "object",
        "properties": {
            "name": {"const": tool.function.name},
            "arguments": tool.function.parameters or {"type": "object"},
        },
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }
