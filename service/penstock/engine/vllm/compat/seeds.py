"""Keep seeded requests reproducible when their prompt takes several steps. For vLLM 0.32.0."""

from __future__ import annotations

from typing import Any


def rewind_discarded_draws() -> None:
    """Take back the random numbers of the tokens that vLLM samples after a part of a prompt and then discards.

    vLLM moves the generator's offset back by the four numbers of one draw. A generator on the CPU has no offset, so the
    worker dies ("CPU Generator does not use offset"): any seeded prompt longer than one step's share is enough. And a
    draw on the CPU takes as many numbers as the vocabulary has tokens. Here the generator's whole state is put back, so
    that a seed draws the same numbers however the prompt was cut, and whether or not its start was cached.
    Upstream: vllm/v1/worker/gpu_model_runner.py `GPUModelRunner._sample` and `_bookkeeping_sync`.
    """
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    sample, bookkeeping_sync = GPUModelRunner._sample, GPUModelRunner._bookkeeping_sync
    if hasattr(sample, "__wrapped__"):
        return

    def sample_and_rewind(self: Any, *args: Any, **kwargs: Any) -> Any:
        """Sample, then restore the generators of rows whose token is discarded."""
        states = [(generator, generator.get_state()) for generator in _discarded(self).values()]
        output = sample(self, *args, **kwargs)
        for generator, state in states:
            generator.set_state(state)
        return output

    def bookkeeping_sync_without(self: Any, *args: Any, **kwargs: Any) -> Any:
        """Update the batch without these generators, whose offset vLLM would move back."""
        generators, discarded = self.input_batch.generators, _discarded(self)
        self.input_batch.generators = {row: one for row, one in generators.items() if row not in discarded}
        try:
            return bookkeeping_sync(self, *args, **kwargs)
        finally:
            self.input_batch.generators = generators

    sample_and_rewind.__wrapped__ = sample  # type: ignore[attr-defined]
    bookkeeping_sync_without.__wrapped__ = bookkeeping_sync  # type: ignore[attr-defined]
    GPUModelRunner._sample = sample_and_rewind
    GPUModelRunner._bookkeeping_sync = bookkeeping_sync_without


def _discarded(runner: Any) -> dict[int, Any]:
    """Return the generators of the rows whose sampled token this step discards, by row."""
    discarded = runner.discard_request_mask.np
    return {row: generator for row, generator in runner.input_batch.generators.items() if discarded[row]}
