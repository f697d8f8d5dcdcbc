"""Why a run stopped, out of what Ray raises."""

from __future__ import annotations

import re

from pipeline.device import NoDeviceError
from pipeline.engine_loop import EngineDied
from pipeline.oversight import Shrunk, Stalled


def chain_of(error: BaseException) -> list[BaseException]:
    """An exception and everything that led to it."""
    chain = [error]
    for found in chain:
        for inner in (getattr(found, "cause", None), found.__cause__, found.__context__):
            if isinstance(inner, BaseException) and all(inner is not known for known in chain):
                chain.append(inner)
    return chain


def is_shrunk(error: BaseException) -> bool:
    """Whether the execution was ended because the cluster has become too small."""
    return any(isinstance(found, Shrunk) for found in chain_of(error))


def is_stalled(error: BaseException) -> bool:
    """Whether the execution was ended because nothing moved any more."""
    return any(isinstance(found, Stalled) for found in chain_of(error))


def is_without_device(error: BaseException) -> bool:
    """Whether an actor has given up because its GPU is lost."""
    return NoDeviceError.__name__ in reason_of(error)


def reason_of(error: BaseException) -> str:
    """The innermost cause of what Ray raises, in one line."""
    chain = chain_of(error)
    for found in chain:
        if isinstance(found, Shrunk | Stalled):
            return str(found)
        # An actor that could not start is told of as a traceback in a message.
        if ours := re.search(r"EngineDied: (.*)", str(found)):
            return ours[1]
    # Ray wraps what happened in exceptions that say nothing, and adds advice below the first line.
    told = [found for found in chain if str(found).strip()] or chain
    text = (str(told[-1]).strip().splitlines() or ["no message"])[0]
    return text if isinstance(told[-1], EngineDied) else f"{type(told[-1]).__name__}: {text}"
