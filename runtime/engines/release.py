"""How an engine lets go of memory while others may still hold the engine."""

from __future__ import annotations


def release(owner: object, *names: str) -> None:
    """Delete attributes, those that are still there; so it may be called again.

    A closed engine is held by its LLM for as long as a user holds that, and then nothing of it may be on
    the device.
    """
    for name in names:
        vars(owner).pop(name, None)
