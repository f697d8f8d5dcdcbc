"""The folders of a night: what is there, asked for with patience."""

from __future__ import annotations

from pyarrow import fs

from jobs.nightly.night import Night
from pipeline.file_systems import resolve
from pipeline.retry import Patience


def check_places(night: Night) -> None:
    """Refuse what can be no folder of dates' folders.

    Raises:
        ValueError: there is no such input, or the input or the output is a file.
        StorageError: the storage does not answer.
    """
    root, output = night.base.input[0], night.base.output
    kind = info(night, root).type
    if kind == fs.FileType.NotFound:
        raise ValueError(f"input is {root!r}: there is no such folder (of date=... folders)")
    if kind != fs.FileType.Directory:
        raise ValueError(f"input is {root!r}: it must be a folder (of date=... folders)")
    if info(night, output).type not in (fs.FileType.Directory, fs.FileType.NotFound):
        raise ValueError(f"output is {output!r}: it must be a folder, and not a file")


def info(night: Night, uri: str, path: str | None = None) -> fs.FileInfo:
    """What is known of a file or folder, by its URI or its path in the URI's file system.

    Raises:
        StorageError: the storage does not answer.
    """
    system, own = resolve(uri)
    where = own if path is None else path
    patience = Patience(night.base.storage_patience_seconds)
    return patience.run(f"looking for {where}", lambda: system.get_file_info(where))
