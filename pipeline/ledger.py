"""What is committed: read from the output's files themselves, there is no second record."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.fingerprint import Fingerprint
from pipeline.keys import Keys, KeySet, as_keys, id_key
from pipeline.schema import ROW_KEY
from pipeline.sink import FINGERPRINT_KEY, SUFFIX, commit, digest_of
from pipeline.storage import Store

T = TypeVar("T")

_THREADS = min(16, 4 * (os.cpu_count() or 1))


@dataclass(frozen=True, slots=True)
class LedgerFile:
    """One committed file and the keys of its rows."""

    name: str
    keys: Keys
    ids: Keys


@dataclass(frozen=True, slots=True)
class Ledger:
    """The committed rows of an output."""

    files: tuple[LedgerFile, ...]

    @property
    def rows(self) -> int:
        """How many rows are committed."""
        return sum(len(f.keys) for f in self.files)

    def keys(self) -> KeySet:
        """The row keys."""
        return KeySet.of(f.keys for f in self.files)

    def ids(self) -> KeySet:
        """The keys of the ids."""
        return KeySet.of(f.ids for f in self.files)


def read_ledger(store: Store, id_column: str) -> Ledger:
    """Read the key columns of all files of an output.

    Raises:
        ValueError: a file that cannot be read, by name.
    """

    def one(name: str) -> LedgerFile:
        table = read_columns(store, name, [id_column, ROW_KEY])
        ids = [id_key(value) for value in table[id_column].to_pylist()]
        return LedgerFile(name, as_keys(table[ROW_KEY].to_pylist()), as_keys(ids))

    return Ledger(tuple(over_files(one, store.names(SUFFIX))))


def over_files(function: Callable[[str], T], names: Sequence[str]) -> list[T]:
    """A function of every file, several at a time, in their order."""
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(function, names))


def read_columns(store: Store, name: str, columns: Sequence[str]) -> pa.Table:
    """Some columns of one output file.

    Raises:
        ValueError: the file cannot be read, by name.
    """
    try:
        with store.filesystem.open_input_file(store.path(name)) as stream:
            return pq.read_table(stream, columns=list(columns))
    except (OSError, pa.ArrowException) as error:
        raise ValueError(
            f"output is {store.uri!r}: its file {name} cannot be read ({error}); move it away, its "
            "rows will be decoded again"
        ) from error


def check_same_job(store: Store, fingerprint: Fingerprint) -> None:
    """Refuse an output that another configuration, or another program, has written to.

    Raises:
        ValueError: naming every field that differs, with its old and its new value.
    """
    names = store.names(SUFFIX)
    seen = {digest_of(name): name for name in names}
    if "" in seen:
        raise ValueError(
            f"output is {store.uri!r}: it must be empty or this job's own, but holds {seen['']}"
        )
    for name in seen.values():
        with store.filesystem.open_input_file(store.path(name)) as stream:
            metadata = pq.read_schema(stream).metadata or {}
        old = Fingerprint.from_json(metadata.get(FINGERPRINT_KEY, b"{}"))
        differences = fingerprint.differences(old)
        if differences:
            raise ValueError(
                f"output is {store.uri!r}: it holds rows of another configuration: "
                f"{'; '.join(differences)}. Choose another output, or the old settings"
            )


def remove_repeated_rows(store: Store, fingerprint: Fingerprint, ledger: Ledger) -> bool:
    """Leave every id in the first file (by name) that holds it; whether anything was changed.

    Rows come twice when a worker of a run that was given up commits late. Which copy stays does
    not depend on who looks, and the new file is there before the old one goes, so a crash here
    loses nothing.
    """
    repeated = ledger.ids().repeated()
    if not len(repeated):
        return False
    twice = KeySet.of([repeated])
    seen: set[bytes] = set()
    for file in ledger.files:
        keep = []
        for i in range(len(file.ids)):
            key = file.ids[i].tobytes()
            keep.append(key not in seen)
            if twice.contains(file.ids[i : i + 1])[0]:
                seen.add(key)
        if all(keep):
            continue
        with store.filesystem.open_input_file(store.path(file.name)) as stream:
            table = pq.read_table(stream)
        rest = table.filter(pa.array(np.array(keep)))
        if rest.num_rows:
            commit(store, fingerprint, rest)
        store.delete(file.name)
    return True
