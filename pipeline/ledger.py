"""What is committed: read from the output's files themselves, there is no second record.

Only key columns are read, several files at once. For each committed row a ledger holds 37 bytes
(row key, key of the id, file, status); with the sorted sets made of them and the input's keys a run
needs up to about 200, most at its end: 20 GB for 10^8 rows, on the driver alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.columns import common_field
from pipeline.fingerprint import Fingerprint
from pipeline.key_columns import id_keys, stored_keys
from pipeline.keys import Keys, KeySet
from pipeline.names import SUFFIX, FileName, content_of
from pipeline.retry import one_line
from pipeline.schema import ROW_KEY, STATUS
from pipeline.sink import FINGERPRINT_KEY
from pipeline.storage import Store
from pipeline.threads import over_threads

T = TypeVar("T")

# What reading a damaged file raises; a ValueError where bytes are no text or no JSON.
_DAMAGE = (OSError, ValueError, pa.ArrowException)


@dataclass(frozen=True, slots=True)
class LedgerFile:
    """One committed file; `bytes` is the size of its columns before compression.

    A finished run knows better what its rows take in memory (see `Ledger.sized`).
    """

    name: str
    rows: int
    bytes: int
    schema: pa.Schema

    @property
    def parsed(self) -> FileName:
        """What its name says."""
        name = FileName.parse(self.name)
        assert name is not None, self.name
        return name


@dataclass(frozen=True)
class Ledger:
    """The committed rows of an output, file by file in the order of their names.

    Of row i: `row_keys[i]`, `id_keys[i]`, whether it has a completion (`ok[i]`), and which of
    `files` holds it (`file_of[i]`).
    """

    files: tuple[LedgerFile, ...]
    row_keys: Keys
    id_keys: Keys
    ok: npt.NDArray[np.bool_]
    file_of: npt.NDArray[np.int32]

    @property
    def rows(self) -> int:
        """How many rows are committed."""
        return len(self.row_keys)

    @cached_property
    def _keys(self) -> KeySet:
        return _set_of(self.row_keys)

    def keys(self) -> KeySet:
        """The row keys, each once."""
        return self._keys

    def ids(self) -> KeySet:
        """The keys of the ids, each once."""
        return _set_of(self.id_keys)

    def sized(self, sizes: Mapping[str, int]) -> Ledger:
        """The same with the sizes that are known of some files, by name.

        Parquet's own sizes say little of memory: a text that repeats is there once.
        """
        files = tuple(replace(f, bytes=sizes.get(f.name, f.bytes)) for f in self.files)
        return replace(self, files=files)

    def done(self, retry_failed: bool) -> Ledger:
        """The rows that are not decoded again."""
        return self.only_ok() if retry_failed else self

    def only_ok(self) -> Ledger:
        """The rows that have a completion: what counts where failures are tried again."""
        rows = self.ok
        return Ledger(
            self.files, self.row_keys[rows], self.id_keys[rows], self.ok[rows], self.file_of[rows]
        )


def _set_of(keys: Keys) -> KeySet:
    """The different keys; what a crash left twice must not make look-ups slow."""
    order = np.lexsort((keys[:, 1], keys[:, 0]))
    high, low = keys[order, 0], keys[order, 1]
    new = np.ones(len(order), np.bool_)
    new[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
    return KeySet(high, low) if new.all() else KeySet(high[new], low[new])


def read_ledger(store: Store, id_column: str, names: Sequence[str] | None = None) -> Ledger:
    """Read the key columns of all files of an output, or of some.

    Raises:
        ValueError: a file that cannot be read, or whose rows are not those it was written with.
        StorageError: the storage does not answer.
    """

    schemas: dict[str, pa.Schema] = {}

    def one(name: str) -> tuple[LedgerFile, Keys, Keys, npt.NDArray[np.bool_]]:
        table, file = _read(store, name, [id_column, ROW_KEY, STATUS])
        try:
            keys, ids = stored_keys(table[ROW_KEY]), id_keys(table[id_column])
            ok = pc.equal(table[STATUS], "ok").to_numpy()
            schema = file.schema_arrow.remove_metadata()
        except _DAMAGE as error:
            raise _unreadable(store, name, error) from error
        parsed = FileName.parse(name)
        if parsed is None or parsed.content != content_of(keys, ok):
            raise _changed(store, name, "its rows are not those that its name was made of")
        schema = schemas.setdefault(str(schema), schema)  # one object for a million files
        meta = file.metadata
        size = sum(meta.row_group(i).total_byte_size for i in range(meta.num_row_groups))
        return LedgerFile(name, table.num_rows, size, schema), keys, ids, ok

    read = over_threads(one, store.names(SUFFIX) if names is None else sorted(names))
    counts = [file.rows for file, *_ in read]
    none = np.empty((0, 2), np.uint64)
    return Ledger(
        tuple(file for file, *_ in read),
        np.concatenate([none, *(keys for _, keys, _, _ in read)]),
        np.concatenate([none, *(ids for _, _, ids, _ in read)]),
        np.concatenate([np.empty(0, np.bool_), *(ok for *_, ok in read)]),
        np.repeat(np.arange(len(counts), dtype=np.int32), counts),
    )


def read_columns(store: Store, name: str, columns: Sequence[str] | None) -> pa.Table:
    """Some columns of one output file (None: all).

    Raises:
        ValueError: the file cannot be read, by name.
        StorageError: the storage does not answer.
    """
    return _read(store, name, columns)[0]


def _read(
    store: Store, name: str, columns: Sequence[str] | None
) -> tuple[pa.Table, pq.ParquetFile]:
    def table(stream: pa.NativeFile) -> tuple[pa.Table | None, pq.ParquetFile]:
        file = pq.ParquetFile(stream)
        there = set(columns or ()).issubset(file.schema_arrow.names)
        return file.read(None if columns is None else list(columns)) if there else None, file

    found, file = _of_file(store, name, table)
    if found is None:
        missing = next(c for c in columns or () if c not in file.schema_arrow.names)
        raise _changed(store, name, f"it has no column {missing!r}")
    return found, file


def _of_file(store: Store, name: str, action: Callable[[pa.NativeFile], T]) -> T:
    """What `action` makes of an open file; what may pass of a storage says nothing about a file."""

    def once() -> T:
        with store.filesystem.open_input_file(store.path(name)) as stream:
            return action(stream)

    try:
        return store.trying(f"reading {store.path(name)}", once)
    except _DAMAGE as error:
        raise _unreadable(store, name, error) from error


def common_schema(store: Store, ledger: Ledger, schema: pa.Schema) -> pa.Schema:
    """The one schema of an output that new rows are added to: a column's widest type so far.

    Raises:
        ValueError: a column that cannot have one type, or whose committed values do not all fit it,
            by name. The end of the run could not write them.
    """
    for old in {str(f.schema): f.schema for f in ledger.files}.values():
        if old.names != schema.names:
            raise ValueError(
                f"output is {store.uri!r}: it has the columns {', '.join(old.names)} and not "
                f"{', '.join(schema.names)}: choose another output"
            )
        for i, name in enumerate(schema.names):
            try:
                wide = common_field(old.field(i), schema.field(i))
            except (pa.ArrowTypeError, pa.ArrowInvalid):
                raise ValueError(
                    f"output is {store.uri!r}: its column {name!r} is of type {old.field(i).type}, "
                    f"but {schema.field(i).type} in the input: choose another output"
                ) from None
            schema = schema.set(i, wide)
    over_threads(lambda file: _check_fits(store, file, schema), ledger.files)
    return schema


def _check_fits(store: Store, file: LedgerFile, schema: pa.Schema) -> None:
    """Types promise less than values need: an int64 beyond 2^53 is no double."""
    other = [f for f in file.schema if not f.type.equals(schema.field(f.name).type)]
    if not other:
        return
    table = read_columns(store, file.name, [f.name for f in other])
    for field in other:
        wide = schema.field(field.name).type
        try:
            table[field.name].cast(wide)
        except pa.ArrowException as error:
            raise ValueError(
                f"output is {store.uri!r}: its column {field.name!r} is of type {field.type} and, "
                f"with the input's, {wide}, which not every value in {file.name} fits "
                f"({one_line(error)}): choose another output"
            ) from error


def _changed(store: Store, name: str, what: str) -> ValueError:
    return ValueError(
        f"output is {store.uri!r}: its file {name} was changed by somebody else: {what}; move it "
        "away, its rows will be decoded again"
    )


def _unreadable(store: Store, name: str, error: Exception) -> ValueError:
    return _changed(store, name, f"it cannot be read ({one_line(error)})")


def check_same_job(store: Store, fingerprint: Fingerprint) -> None:
    """Refuse an output that another configuration, or another program, has written to.

    Raises:
        ValueError: naming every field that differs, with its old and its new value.
        StorageError: the storage does not answer.
    """
    by_digest: dict[str, str] = {}
    for name in store.names(SUFFIX):
        parsed = FileName.parse(name)
        if parsed is None:
            raise ValueError(
                f"output is {store.uri!r}: it must be empty or this job's own, but holds {name}"
            )
        by_digest.setdefault(parsed.digest, name)
    for name in by_digest.values():
        old = fingerprint_of(store, name)
        differences = fingerprint.differences(old)
        if differences:
            raise ValueError(
                f"output is {store.uri!r}: it holds rows of another configuration: "
                f"{'; '.join(differences)}. Choose another output, or the old settings"
            )


def fingerprint_of(store: Store, name: str) -> Fingerprint:
    """The fingerprint of the job that wrote a file.

    Raises:
        ValueError: the file cannot be read, by name.
        StorageError: the storage does not answer.
    """
    return _of_file(store, name, _fingerprint)


def _fingerprint(stream: pa.NativeFile) -> Fingerprint:
    metadata = pq.read_schema(stream).metadata or {}
    return Fingerprint.from_json(metadata.get(FINGERPRINT_KEY, b"{}"))
