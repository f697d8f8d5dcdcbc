"""The model that a draft plan was made for: another would draft badly, and nothing would say so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class MadeFor:
    """A plan's name, and what is known of its model.

    `config` and `weights` are digests as `fingerprint.model_identity` gives them; None where they
    are not known: then the number of layers alone tells models apart.
    """

    plan: str = field(compare=False)
    model: str
    layers: int
    config: str | None = None
    weights: str | None = None

    def check(self, model: str, layers: int, identity: Mapping[str, str]) -> None:
        """Refuse another model.

        Args:
            model: its name, for the message.
            layers: that it has.
            identity: its digests.

        Raises:
            ValueError: it is another one than the plan was made for, in a sentence naming both.
        """
        begin = f"the plan {self.plan} was made for the model {self.model}"
        own = f"which has {self.layers} layers"
        end = "make a plan for this model, or ask for this one with --plan-any-model"
        if layers != self.layers:
            raise ValueError(
                f"{begin}, {own}, and not for {model}, which has {layers}: "
                "take a plan that was made for this model"
            )
        for name in ("config", "weights"):
            known = getattr(self, name)
            if known is not None and known != identity[name]:
                raise ValueError(f"{begin} and not for {model}, whose {name} differ: {end}")
