"""Where prompts come from: Parquet, JSON lines, CSV, Hugging Face datasets and the demo's topics.

A source is a schema and named parts, each an iterator of Arrow tables. Text formats are read
twice: once for the types of all rows, so that every shard has the same schema, then for the rows.
"""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from glob import glob
from itertools import islice
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from pipeline.home import local_path

_BATCH = 4096
Rows = Iterator[dict[str, Any]]


@dataclass(frozen=True)
class Part:
    """One file or split: its name (rows without an id are named after it) and its tables."""

    name: str
    tables: Callable[[], Iterator[pa.Table]]


@dataclass(frozen=True)
class Source:
    """Tables of one schema."""

    schema: pa.Schema
    parts: Sequence[Part]


def _files(paths: Sequence[str], endings: tuple[str, ...]) -> list[tuple[str, Path]]:
    """The files of paths, folders and globs, each with the name that its rows are called after."""
    found: list[Path] = []
    for path in paths:
        place = local_path(path)
        if place.is_dir():
            files = sorted(f for f in place.iterdir() if f.name.endswith(endings))
        elif place.is_file():
            files = [place]
        else:
            files = sorted(Path(f) for f in glob(str(place)) if Path(f).is_file())
        if not files:
            kinds = " or ".join(endings[:2])
            raise ValueError(
                f"{path} has no input: it must be a file, a glob or a folder of {kinds}"
            )
        found += files
    unique = len({f.name for f in found}) == len(found)
    return [(f.name if unique else str(f), f) for f in found]


def parquet(paths: Sequence[str]) -> Source:
    """Parquet files of one schema.

    Raises:
        ValueError: no files, or a file that is not Parquet or differs from the first.
    """
    import pyarrow.parquet as pq

    files = _files(paths, (".parquet",))
    try:
        schemas = [pq.read_schema(file).remove_metadata() for _, file in files]
    except pa.ArrowInvalid as error:
        raise ValueError(f"the input is not Parquet: {error}") from error
    try:
        schema = pa.unify_schemas(schemas, promote_options="permissive")
    except pa.ArrowInvalid as error:
        raise ValueError(f"the input files have columns of different types: {error}") from error

    def tables(file: Path) -> Iterator[pa.Table]:
        with pq.ParquetFile(file) as parquet_file:
            for batch in parquet_file.iter_batches(_BATCH):
                yield _conform(pa.Table.from_batches([batch]), schema)

    return Source(schema, [_part(name, tables, file) for name, file in files])


def _part(name: str, tables: Callable[[Any], Iterator[pa.Table]], file: Any) -> Part:
    return Part(name, lambda: tables(file))


def _conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    columns = [
        table[f.name].cast(f.type) if f.name in table.column_names else pa.nulls(len(table), f.type)
        for f in schema
    ]
    return pa.table(columns, schema=schema)


def jsonl(paths: Sequence[str]) -> Source:
    """JSON lines, one object a line; .gz too.

    Raises:
        ValueError: a line that is no JSON object, by file and line.
    """
    return _from_text(_files(paths, (".jsonl", ".json", ".jsonl.gz", ".ndjson")), _json_rows)


def csv_files(paths: Sequence[str]) -> Source:
    """CSV with a header line; every column is text, so that "007" stays what it is.

    Raises:
        ValueError: a row with more or fewer fields than the header, by file and line.
    """
    return _from_text(_files(paths, (".csv", ".csv.gz")), _csv_rows)


def _open(file: Path) -> IO[str]:
    if file.suffix == ".gz":
        return gzip.open(file, "rt", encoding="utf-8-sig", newline="")
    return file.open(encoding="utf-8-sig", newline="")


def _json_rows(file: Path) -> Rows:
    with _open(file) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{file}, line {number} is not JSON: {error}") from error
            if not isinstance(row, dict):
                raise ValueError(f"{file}, line {number} is no JSON object")
            yield row


def _csv_rows(file: Path) -> Rows:
    with _open(file) as lines:
        reader = csv.DictReader(lines)
        if not reader.fieldnames:
            raise ValueError(f"{file} has no header line")
        for row in reader:
            if None in row or None in row.values():
                fields = len(reader.fieldnames)
                raise ValueError(
                    f"{file}, line {reader.line_num} does not have the header's {fields} fields"
                )
            yield row


def _from_text(files: Sequence[tuple[str, Path]], read: Callable[[Path], Rows]) -> Source:
    schema = pa.schema([])
    for _, file in files:
        try:
            for rows in _batches(read(file)):
                found = pa.Table.from_pylist(_all_keys(rows)).schema
                schema = pa.unify_schemas([schema, found], promote_options="permissive")
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise ValueError(
                f"{file}: a column holds values of different types: {error}"
            ) from error
        except UnicodeDecodeError as error:
            raise ValueError(f"{file} is not UTF-8 text: {error}") from error
    if not len(schema):
        raise ValueError(f"{', '.join(str(file) for _, file in files)} has no rows")

    def tables(file: Path) -> Iterator[pa.Table]:
        for rows in _batches(read(file)):
            yield pa.Table.from_pylist(rows, schema=schema)

    return Source(schema, [_part(name, tables, file) for name, file in files])


def _all_keys(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    # from_pylist takes its columns from the first row alone.
    keys = dict.fromkeys(key for row in rows for key in row)
    return [{**dict.fromkeys(keys), **rows[0]}, *rows[1:]]


def _batches(rows: Rows) -> Iterator[list[dict[str, Any]]]:
    while batch := list(islice(rows, _BATCH)):
        yield batch


def dataset(name: str, *, subset: str | None = None, split: str = "train") -> Source:
    """A Hugging Face dataset: a hub name, a folder of files, or a folder of `save_to_disk`.

    Raises:
        ValueError: a dataset or a split that cannot be loaded, with the reason.
    """
    import datasets

    datasets.disable_progress_bars()
    try:
        if (Path(name) / "dataset_dict.json").is_file():
            loaded = datasets.load_from_disk(name)[split]
        elif (Path(name) / "state.json").is_file():
            loaded = datasets.load_from_disk(name)
        else:
            loaded = datasets.load_dataset(name, subset, split=split)
    except Exception as error:  # the hub, fsspec and every reader raise kinds of their own
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise ValueError(f"the dataset {name!r} cannot be loaded: {reason}") from error
    arrow = loaded.with_format("arrow")
    schema = arrow.features.arrow_schema.remove_metadata()

    def tables(_: object) -> Iterator[pa.Table]:
        for table in arrow.iter(batch_size=_BATCH):
            yield table.cast(schema)

    return Source(schema, [_part(f"{Path(name).name}/{split}", tables, None)])
