"""What is too old to be kept: date folders of ours and their stages, never the newest."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta

from pyarrow import fs

from jobs.nightly.dates import date_of, folder_of
from pipeline.errors import Locked
from pipeline.file_systems import resolve
from pipeline.lease import LeaseTimes, hold
from pipeline.manifest import MANIFEST, RUN
from pipeline.storage import Store


@dataclass(frozen=True, slots=True)
class Old:
    """A date that is past its time, and the folders to remove."""

    date: date
    folders: tuple[str, ...]


def too_old(output: str, stages: str, last: date, keep_days: int) -> list[Old]:
    """The dates whose folders may go: outputs of ours, more than `keep_days` before `last`.

    A folder of another name stays, and so do one without a run's records, a link to elsewhere and
    the newest date that there is, however old.

    Args:
        output: the folder of all dates.
        stages: the name of the folder in it that holds the dates' stages.
        last: the logical date of this tick.
        keep_days: how many dates are kept, `last` among them.

    Raises:
        OSError, StorageError: the output cannot be looked at.
    """
    root = output.rstrip("/")
    ours = {day: path for day, path in _dates(root) if _is_ours(path)}
    first_kept = last - timedelta(days=keep_days - 1)
    newest = max(ours, default=None)
    beside = dict(_dates(f"{root}/{stages}"))
    return [
        Old(day, tuple(p for p in (beside.get(day), ours[day]) if p is not None))
        for day in sorted(ours)
        if day < first_kept and day != newest
    ]


def remove(old: Old, lease_times: LeaseTimes | None = None) -> bool:
    """Remove a date's folders; False where a run is at work on one of them.

    Raises:
        OSError, StorageError: a folder that cannot be removed.
    """
    for folder in old.folders:
        try:
            with hold(Store(folder), lease_times):  # which goes with the folder
                system, path = resolve(folder)
                system.delete_dir(path)
        except Locked:
            return False
    return True


def _dates(root: str) -> Iterator[tuple[date, str]]:
    store = Store(root)
    for info in store.listing():
        day = date_of(info.base_name)
        linked = store.filesystem.type_name == "local" and os.path.islink(info.path)
        if day is not None and info.type == fs.FileType.Directory and not linked:
            yield day, f"{root}/{folder_of(day)}"


def _is_ours(folder: str) -> bool:
    store = Store(folder)
    return store.exists(MANIFEST) or store.exists(RUN)
