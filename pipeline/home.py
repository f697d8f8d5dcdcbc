"""Paths of this machine as people write them, with `~` for a home."""

from __future__ import annotations

from pathlib import Path


def local_path(path: str) -> Path:
    """A path with the home that its `~` means.

    Raises:
        ValueError: the home of nobody.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ValueError(f"{path!r} is no usable path: there is no such user") from None
