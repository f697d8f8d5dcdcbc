"""Who works on an output at this moment, for those who only want to know."""

from __future__ import annotations

import json

from pipeline.owner import Owner
from pipeline.storage import LEASES, SEALED, Store


def holder_of(store: Store) -> Owner | None:
    """The owner of an output's lease; None where it is released, or its process certainly gone.

    A process of another machine may have died all the same: only its heartbeat tells.

    Raises:
        StorageError: the storage cannot be reached.
    """
    names = [n for n in store.names("", LEASES) if n[:8].isdigit() and not n.endswith(SEALED)]
    for name in sorted(names, reverse=True):
        try:
            owner = Owner(**json.loads(store.read(f"{LEASES}/{name}")))
        except (FileNotFoundError, ValueError, TypeError):
            continue  # taken away, or being written, at this moment
        return None if owner.released or owner.is_gone else owner
    return None
