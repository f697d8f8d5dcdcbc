"""Reconciliation: of an id that was committed more than once, which row stays.

An id comes twice when a worker of a run that was given up commits late, when a failed row was
tried again, when its prompt was changed, or when a run died while it merged files. The best copy
does not depend on who looks, nor when: the prompt that the input has now, then success before
failure, then the newest file. What replaces a file is always newer than it, and is there before it
goes, so a crash at any moment loses nothing and the next look comes to the same end.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline.keys import KeySet
from pipeline.ledger import Ledger


def best_rows(ledger: Ledger, wanted: KeySet) -> npt.NDArray[np.bool_]:
    """For each committed row whether it stays; `wanted` are the row keys of the input."""
    ids = ledger.id_keys
    order = np.lexsort((ids[:, 1], ids[:, 0]))
    same = (ids[order[1:]] == ids[order[:-1]]).all(axis=1)
    again = np.zeros(len(ids), np.bool_)
    again[1:] |= same
    again[:-1] |= same
    best = np.ones(len(ids), np.bool_)
    copies = order[again]  # rows, all copies of one id side by side
    if not len(copies):
        return best
    names = [file.parsed for file in ledger.files]
    age = np.empty(len(names), np.int64)
    age[sorted(range(len(names)), key=names.__getitem__)] = np.arange(len(names))
    worth = np.lexsort(
        (
            -copies,  # the last key of all: within one file, the first row
            age[ledger.file_of[copies]],
            ledger.ok[copies],
            wanted.contains(ledger.row_keys[copies]),
            ids[copies, 1],
            ids[copies, 0],
        )
    )
    ranked = copies[worth]
    last_of_its_id = np.ones(len(ranked), np.bool_)
    last_of_its_id[:-1] = (ids[ranked[1:]] != ids[ranked[:-1]]).any(axis=1)
    best[ranked[~last_of_its_id]] = False
    return best
