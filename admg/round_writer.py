"""A round's numbers, from the sequences into the buffers on the device."""

from __future__ import annotations

from admg.noise import signed
from admg.places import Places
from admg.plan import DraftPlan
from admg.round_buffers import RoundBuffers
from admg.sequence import Sequence


class RoundWriter:
    """Writes on the host and sends to the device, without waiting.

    Args:
        host: buffers in (pinned) host memory. Their last contents must have arrived when the next
            ones are written: who reads a round's result has waited for that.
        device: the same buffers there.
        places: of the sequences' running means.
        vocab_size: what stands for "no top-k".
    """

    def __init__(
        self, host: RoundBuffers, device: RoundBuffers, places: Places, vocab_size: int
    ) -> None:
        self._host, self._device = host, device
        self._places, self._vocab_size = places, vocab_size
        self._plans: list[DraftPlan | None] = []

    def send(self, sequences: list[Sequence], given: list[list[int]], own: list[int]) -> None:
        """The numbers of a round, and the plans' masks if they are others than before.

        Args:
            sequences: the batch, in its order; what lies behind it in the buffers becomes padding.
            given: draft tokens that need no pass, per sequence.
            own: the longest draft of the model itself, per sequence.
        """
        self._numbers(sequences, given, own)
        self._host.send(self._device, ("whole", "real", "stops", "given"))
        plans = [s.plan for s in sequences]
        known = len(plans) == len(self._plans)
        if not known or any(a is not b for a, b in zip(plans, self._plans, strict=True)):
            self._masks(plans)
            self._host.send(self._device, ("kept", "kept_mlps", "limited"))
            self._plans = plans

    def _numbers(self, sequences: list[Sequence], given: list[list[int]], own: list[int]) -> None:
        host, vocab = self._host, self._vocab_size
        places = self._places.give(sequences)
        params = [s.request.sampling for s in sequences]
        learned = [s.learned for s in sequences]
        columns: dict[str, list[float]] = {
            "present": [1] * len(sequences),
            "token": [s.tokens[-1] for s in sequences],
            "length": [len(s.tokens) for s in sequences],
            "start": [s.extent.start for s in sequences],
            "capacity": [s.extent.capacity for s in sequences],
            "limit": [*own],
            "given": [len(g) for g in given],
            "base": [signed(s.base) for s in sequences],
            "position": [len(s.tokens) - s.prompt_length for s in sequences],
            "min_tokens": [p.min_tokens for p in params],
            "top_k": [min(p.top_k or vocab, vocab) for p in params],
            "temperature": [p.temperature for p in params],
            "top_p": [p.top_p for p in params],
            "min_p": [p.min_p for p in params],
            "exit_below": [0.0 if s.exit is None else s.exit.threshold for s in sequences],
            "filling_weight": [0.0 if k.filling is None else k.filling.weight for k in learned],
            "left_out_weight": [0.0 if k.left_out is None else k.left_out.weight for k in learned],
        }
        for name, values in columns.items():
            host.fill(name, values)
        host.fill("place", places, rest=self._places.nobody)
        host.fill_rows("stops", [s.stops for s in sequences])
        host.fill_rows("given", given)

    def _masks(self, plans: list[DraftPlan | None]) -> None:
        host = self._host
        host.kept.fill_(True)
        host.kept_mlps.fill_(True)
        host.limited.fill_(False)
        for i, plan in enumerate(plans):
            if plan is None:
                continue
            host.kept[list(plan.dropped), i] = False
            host.kept_mlps[list(plan.dropped_mlps), i] = False
            for layer, heads in enumerate(plan.windowed):
                host.limited[layer, i, list(heads)] = True
