"""This machine's cache: folders that one process makes, once, while the others wait for it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.home import local_path

Say = Callable[[str], None]


def cache_dir() -> Path:
    """`$ADMG_BATCH_CACHE`, else `$XDG_CACHE_HOME/admg-batch`, else `~/.cache/admg-batch`."""
    if own := os.environ.get("ADMG_BATCH_CACHE"):
        return local_path(own)
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "admg-batch"


def made_once(target: Path, make: Callable[[Path], Path], say: Say, what: str) -> Path:
    """The folder `target`, made by the first process of this machine that asks for it.

    A folder that exists is complete, because it is renamed into place as the last step. Processes
    that ask at the same time wait for the first one; what a killed one left is removed.

    Args:
        target: the folder.
        make: is given an empty scratch folder, and returns the folder in it that is to be `target`.
        say: gets a line where another process is waited for.
        what: is made, for that line.

    Raises:
        OSError: the cache cannot be written.
    """
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with _only_one(target, say, what):
        if target.is_dir():
            return target
        for left in target.parent.glob(f".{target.name}-*"):  # of a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        # In the cache itself, not in /tmp: a rename is atomic within one file system only.
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
            made = make(Path(scratch))
            made.chmod(0o755)
            made.rename(target)
    return target


@contextmanager
def _only_one(target: Path, say: Say, what: str) -> Iterator[None]:
    from filelock import FileLock, Timeout

    lock = FileLock(target.with_name(f".{target.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"{what}: another process is making it, waiting for that")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
