"""Files that are written whole or not at all, in folders that are checked beforehand."""

from __future__ import annotations

import os
from pathlib import Path


def check_folder(option: str, path: Path | None) -> None:
    """Refuse a file whose folder is not there, before any work is done for it.

    Args:
        option: that names the file, as the user writes it.
        path: of the file; None where the option was not given.

    Raises:
        ValueError: naming the option and its value.
    """
    if path is not None and not path.absolute().parent.is_dir():
        raise ValueError(f"{option} is {path}: its folder must exist")


def write_whole(path: Path, text: str) -> None:
    """Write a text file; readers find the old one or all of the new one.

    Raises:
        OSError: it cannot be written; the old one is as it was.
    """
    # Beside it, since only within a file system one name can take another's place at once.
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        aside.write_text(text, encoding="utf-8")
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
