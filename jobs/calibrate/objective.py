"""What a plan is worth: the modelled speedup of its rounds, without the noise of a clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from admg.plan import DraftPlan
from jobs.devices import Device
from jobs.modelled import Saving, Shape, model_round


@dataclass(frozen=True, slots=True)
class Objective:
    """A roofline (see `jobs.modelled`) of one device, batch and context.

    `number` is the bytes of a weight and of a cached number.
    """

    shape: Shape
    device: Device
    batch: int
    context: float
    number: int = 2

    def speedup(
        self, plans: Sequence[DraftPlan], draft_tokens: float, tokens_per_pass: float
    ) -> float:
        """Modelled speedup over plain decoding of rounds that draft and commit so much.

        Args:
            plans: of the sequences; what all of them leave out need not be read.
        """
        if not draft_tokens:
            return 1.0
        saving = Saving.of(plans)
        return model_round(
            self.shape,
            self.device,
            batch=self.batch,
            context=self.context,
            saving=saving,
            draft_tokens=draft_tokens,
            tokens_per_pass=tokens_per_pass,
            number=self.number,
        ).speedup

    def __str__(self) -> str:
        return (
            f"modelled speedup on {self.device.name}, batch {self.batch}, "
            f"context {self.context:.0f} tokens"
        )
