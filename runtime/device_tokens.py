"""Tokens of every kind of request, chosen on a GPU."""

from __future__ import annotations

from cleave.runtime.engines.engine import DeviceOutput, Engine, EngineOptions, device_engine
from cleave.runtime.logit_rows import LogitRows
from cleave.runtime.pending import DeviceTokens, LikeliestTokens, Pending
from cleave.runtime.sampling.device.create import create_device_sampler
from cleave.runtime.sampling.device.interface import TokenSampler
from cleave.runtime.sampling.device.row import SampledRow
from cleave.runtime.sampling.state import SamplingState


class SampledTokens:
    """Those that the engine has chosen where all are the likeliest, else the device sampler's.

    See `DeviceTokens`.
    """

    def __init__(self, likeliest: LikeliestTokens, sampler: TokenSampler) -> None:
        self._likeliest = likeliest
        self._sampler = sampler

    @property
    def draws(self) -> bool:
        """See `DeviceTokens`."""
        return True

    def takes(self, state: SamplingState | None, *, in_lockstep: bool = False) -> bool:
        """See `DeviceTokens`."""
        return self._sampler.takes(state, in_lockstep=in_lockstep)

    def choose(self, output: DeviceOutput, wanted: LogitRows) -> Pending:
        """See `DeviceTokens`."""
        if all(state is None for state in wanted.states):
            return self._likeliest.choose(output, wanted)
        rows = [
            SampledRow(owner.id, state, len(owner.output) + owner.in_flight)
            for owner, state in zip(wanted.owners, wanted.states, strict=True)
        ]
        return self._sampler.sample(output.logits, rows)

    def forget(self, sequence: int) -> None:
        """See `DeviceTokens`."""
        self._sampler.forget(sequence)

    def close(self) -> None:
        """See `DeviceTokens`."""
        self._likeliest.close()
        self._sampler.close()


def device_tokens(engine: Engine, vocab_size: int, options: EngineOptions) -> DeviceTokens | None:
    """What chooses tokens beside an engine; None where it is no DeviceEngine.

    Without a device sampler these are only the likeliest. Raises EngineError where the device has no room
    for it.
    """
    if device_engine(engine) is None:
        return None
    rows = min(options.max_tokens, options.max_sequences)
    likeliest = LikeliestTokens(engine.device, rows)
    sampler = create_device_sampler(vocab_size, engine.device, rows)
    return likeliest if sampler is None else SampledTokens(likeliest, sampler)
