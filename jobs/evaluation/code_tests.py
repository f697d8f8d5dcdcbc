"""pass@1 of generated functions: each answer is run with its example's tests, in the sandbox.

This executes code that a model has written: ask for consent before, and `check_isolation`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from jobs.evaluation.sandbox import Isolation, Limits, Outcome, run_program
from jobs.evaluation.tasks import Example, program


def run_tests(
    examples: Sequence[Example],
    answers: Sequence[str],
    isolation: Isolation,
    limits: Limits | None = None,
    workers: int | None = None,
) -> list[Outcome]:
    """How each answer's tests ended; pass@1 is the share that `passed`. Equal programs run once.

    Raises:
        SandboxUnavailable: the isolation is not possible here.
    """
    programs = [program(e, a) for e, a in zip(examples, answers, strict=True)]
    distinct = list(dict.fromkeys(programs))
    # A program that waits for its neighbours' cores may be taken for one that hangs.
    most = workers or max(1, (os.cpu_count() or 2) // 2)
    pool = ThreadPoolExecutor(most)
    try:
        ran = pool.map(lambda source: run_program(source, isolation, limits), distinct)
        outcomes = dict(zip(distinct, ran, strict=True))
    finally:
        pool.shutdown(cancel_futures=True)  # after Ctrl-C or an error no further program starts
    return [outcomes[p] for p in programs]
