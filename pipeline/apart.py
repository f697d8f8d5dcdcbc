"""Tokenize as an actor: a process of its own, which has no use for torch.

Beside a tokenizer, transformers imports torch and much of torch's compiler where it finds them.
That is most of the CPU seconds such a process takes, a third of them while it ends, and on a
machine without GPUs they are the engine's.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from pipeline.factory import EngineFactory, ModelFactory
from pipeline.stages import Tokenize

_TORCH = "torch"
# transformers says that torch is missing, which would be no news to whoever reads the actor's log.
_NO_ADVICE = "TRANSFORMERS_NO_ADVISORY_WARNINGS"


class TokenizeApart(Tokenize):
    """`Tokenize`, its tokenizer loaded as transformers does it where there is no torch.

    That is for the default's tokenizers; others may want torch for something.
    """

    def __init__(self, factory: EngineFactory, *arguments: Any) -> None:
        with torch_unseen() if isinstance(factory, ModelFactory) else nullcontext():
            super().__init__(factory, *arguments)


@contextmanager
def torch_unseen() -> Iterator[None]:
    """No import finds torch, unless it is there already; afterwards it is found again.

    What is imported meanwhile may remember that there was none, as transformers does for good.
    """
    if _TORCH in sys.modules:
        yield
        return
    os.environ.setdefault(_NO_ADVICE, "1")
    sys.modules[_TORCH] = None  # type: ignore[assignment]  # Python's own way to say so
    try:
        yield
    finally:
        del sys.modules[_TORCH]
