"""Many clients at once, as cheap as clients can be: plain sockets that read server-sent events."""

from __future__ import annotations

import asyncio
import json
import resource
from typing import Any


def allow_many_files() -> None:
    """Let this process have as many connections as the system lets it have."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


async def stream_text(url: str, body: dict[str, Any], leave_after: int | None = None) -> str | None:
    """The text of a streamed completion; None for a client that left after so many events."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        content = json.dumps({**body, "stream": True}).encode()
        head = (
            "POST /v1/completions HTTP/1.1\r\nHost: crowd\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        )
        writer.write(head.encode() + content)
        status = await reader.readline()
        assert b" 200 " in status, status + await reader.read()
        text, count = "", 0
        while line := await reader.readline():
            if line.startswith(b"data: {"):
                count += 1
                if count == leave_after:
                    # As a process that is killed: the kernel tells the server, and nobody says goodbye.
                    writer.transport.abort()
                    return None
                event = json.loads(line[6:])
                assert "error" not in event, event
                text += event["choices"][0]["text"]
            elif line.startswith(b"data: [DONE]"):
                return text
        raise AssertionError("the stream ended without its end")
    finally:
        writer.close()
