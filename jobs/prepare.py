"""Writing prompt shards: Parquet files with an id, a prompt and whatever columns are kept."""

from __future__ import annotations

import difflib
import os
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.sources import Source
from pipeline.home import local_path
from pipeline.template import Template


@dataclass(frozen=True)
class Columns:
    """Which columns of the source make the rows.

    `id_column` None takes a column "id" where there is one, and otherwise makes ids from the
    file's name and the row's number in it ("news.jsonl:17"), the same at every preparation.
    `template` is the text of a template, filled from the row's columns.
    """

    id_column: str | None = None
    prompt_column: str = "prompt"
    template: str | None = None
    keep: tuple[str, ...] = ()


@dataclass(frozen=True)
class Written:
    """What was written."""

    output: str
    shards: int
    rows: int


def write_shards(
    source: Source,
    columns: Columns,
    output: str,
    *,
    rows_per_shard: int = 1000,
    limit: int | None = None,
    overwrite: bool = False,
) -> Written:
    """Write the rows of a source as prompt shards, all of them or none.

    Raises:
        ValueError: a column that is not there or unfit, a row without an id, an output in use.
    """
    if rows_per_shard < 1:
        raise ValueError(f"--rows-per-shard is {rows_per_shard}: it must be at least 1")
    if limit is not None and limit < 1:
        raise ValueError(f"--limit is {limit}: it must be at least 1")
    folder = local_path(output)
    old = shards_in(output, overwrite)
    builder = _Builder(source.schema, columns)
    tables = _limited(_prompts(source, builder), limit)
    folder.mkdir(parents=True, exist_ok=True)
    mark = uuid.uuid4().hex[:8]
    aside: list[Path] = []
    rows = 0
    try:
        for shard in _regrouped(tables, rows_per_shard):
            # Readers skip names with a dot in front, so a preparation that dies shows nothing.
            aside.append(folder / f".part-{len(aside):05d}.parquet.{mark}")
            pq.write_table(shard, aside[-1], compression="zstd")
            rows += len(shard)
        if not rows:
            raise ValueError("the source has no rows")
        for path in old:
            path.unlink()
        for path in aside:
            os.replace(path, folder / path.name[1:].removesuffix(f".{mark}"))
    finally:
        for path in aside:
            path.unlink(missing_ok=True)
    return Written(output, len(aside), rows)


def shards_in(output: str, overwrite: bool) -> list[Path]:
    """The Parquet files that an output holds, to be replaced.

    Raises:
        ValueError: there are some, and they are to stay.
    """
    old = sorted(local_path(output).glob("*.parquet"))
    if old and not overwrite:
        raise ValueError(
            f"--output {output} already holds {len(old)} Parquet files: "
            "give another folder, or --overwrite to replace them"
        )
    return old


def _prompts(source: Source, builder: _Builder) -> Iterator[pa.Table]:
    for part in source.parts:
        done = 0
        for table in part.tables():
            yield builder.build(table, part.name, done)
            done += len(table)


def _limited(tables: Iterator[pa.Table], limit: int | None) -> Iterator[pa.Table]:
    left = limit
    for table in tables:
        if left is None:
            yield table
            continue
        yield table.slice(0, left)
        left -= min(left, len(table))
        if not left:
            return


def _regrouped(tables: Iterator[pa.Table], rows: int) -> Iterator[pa.Table]:
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        while sum(map(len, waiting)) >= rows:
            whole = pa.concat_tables(waiting)
            yield whole.slice(0, rows).combine_chunks()
            waiting = [whole.slice(rows)]
    if rest := [t for t in waiting if len(t)]:
        yield pa.concat_tables(rest).combine_chunks()


class _Builder:
    """Turns a table of the source into a table of prompts."""

    def __init__(self, schema: pa.Schema, columns: Columns) -> None:
        self.columns = columns
        self.template = None if columns.template is None else Template.parse(columns.template)
        if columns.id_column is not None:
            self.id_column: str | None = columns.id_column
            _check(schema, "--id-column", columns.id_column)
        else:
            self.id_column = "id" if "id" in schema.names else None
        if self.template is None:
            _check(schema, "--prompt-column", columns.prompt_column)
            _check_prompt(schema.field(columns.prompt_column))
        for name in () if self.template is None else self.template.columns:
            _check(schema, "--template", name)
        for name in columns.keep:
            _check(schema, "--keep", name)
            if name in ("id", "prompt"):
                raise ValueError(
                    f"--keep is {name!r}: the shards have a column of that name anyway"
                )
        if self.id_column is not None:
            kind = schema.field(self.id_column).type
            if not (_is_text(kind) or pa.types.is_integer(kind)):
                raise ValueError(
                    f"the id column {self.id_column!r} is {kind}: it must be text or whole numbers"
                )

    def build(self, table: pa.Table, name: str, first: int) -> pa.Table:
        """The prompts of a table whose first row is row `first` of the part `name`."""
        if self.id_column is None:
            ids = pa.array([f"{name}:{first + i + 1}" for i in range(len(table))], pa.string())
        else:
            ids = table[self.id_column]
            if ids.null_count:
                row = first + ids.is_null().to_pylist().index(True) + 1
                raise ValueError(f"{name}, row {row} has no id in the column {self.id_column!r}")
        made = {"id": ids, "prompt": self._prompt(table)}
        return pa.table(made | {k: table[k] for k in self.columns.keep})

    def _prompt(self, table: pa.Table) -> pa.Array:
        if self.template is None:
            return table[self.columns.prompt_column]
        names = self.template.columns
        rows = zip(*(table[n].to_pylist() for n in names), strict=True)
        return pa.array(
            [self._fill(dict(zip(names, row, strict=True))) for row in rows], pa.string()
        )

    def _fill(self, row: dict[str, object]) -> str | None:
        # A missing field makes the prompt missing: an error row of the run, not a text with "None".
        if self.template is None or any(v is None for v in row.values()):
            return None
        return self.template.fill({k: str(v) for k, v in row.items()})


def _check(schema: pa.Schema, option: str, name: str) -> None:
    if name in schema.names:
        return
    near = difflib.get_close_matches(name, schema.names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"the columns are {_listed(schema.names)}"
    raise ValueError(f"{option} is {name!r}, which the input does not have: {hint}")


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:12])
    return shown if len(names) <= 12 else f"{shown} and {len(names) - 12} more"


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _check_prompt(field: pa.Field) -> None:
    kind = field.type
    messages = (
        (pa.types.is_list(kind) or pa.types.is_large_list(kind))
        and pa.types.is_struct(kind.value_type)
        and {f.name for f in kind.value_type} >= {"role", "content"}
    )
    if not (_is_text(kind) or messages):
        raise ValueError(
            f"the prompt column {field.name!r} is {kind}: it must be text, "
            "or lists of messages with role and content"
        )
