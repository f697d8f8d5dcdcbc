"""When rows were committed: kept for reports, for the end of a run merges the files that said so.

A block's file has the time of its commit from the file system. Before such files are merged, one
line for each of them goes into `_admg/commits.arrow`: time, rows, tokens, draft tokens by source.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import ipc

from pipeline.ledger import read_columns
from pipeline.names import FileName
from pipeline.schema import DRAFTER_TOKENS
from pipeline.storage import STATE, Store
from pipeline.threads import over_threads

COMMITS = f"{STATE}/commits.arrow"
_SCHEMA = pa.schema(
    [
        pa.field("content", pa.string()),
        pa.field("seconds", pa.float64()),
        pa.field("rows", pa.int64()),
        pa.field("completion_tokens", pa.int64()),
        pa.field("drafter_tokens", DRAFTER_TOKENS),
    ]
)
_SUMMED = ("completion_tokens", "drafter_tokens")


def note_commits(store: Store, names: Iterable[str]) -> None:
    """Keep what blocks' files (`part-...`) say, before they go. Merged files say nothing.

    Done again after a crash it adds nothing twice.

    Raises:
        ValueError: a file that cannot be read.
    """
    old = noted_commits(store)
    known = set(old["content"].to_pylist())
    parts = [n for n in sorted(names) if is_part(n) and content(n) not in known]
    if not parts:
        return
    times = commit_times(store, parts)
    lines = over_threads(lambda name: _line(store, name, times[name]), parts)
    whole = pa.concat_tables([old, pa.Table.from_pylist(lines, _SCHEMA)])
    out = pa.BufferOutputStream()
    with ipc.new_file(out, _SCHEMA, options=ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(whole.combine_chunks())
    store.write(COMMITS, out.getvalue())


def noted_commits(store: Store) -> pa.Table:
    """What has been kept: content (of the file's name), seconds since 1970, rows, tokens.

    A file that is not what was written is as good as none: this is no record of results.
    """
    if not store.exists(COMMITS):
        return _SCHEMA.empty_table()
    try:
        table = ipc.open_file(store.read(COMMITS)).read_all()
    except (pa.ArrowException, OSError):
        return _SCHEMA.empty_table()
    return table if table.schema == _SCHEMA else _SCHEMA.empty_table()


def commit_times(store: Store, names: Sequence[str]) -> dict[str, float]:
    """When files were written, in seconds since 1970, by what the file system says."""
    paths = [store.path(name) for name in names]
    found = store.trying(
        f"looking for files of {store.uri}", lambda: store.filesystem.get_file_info(paths)
    )
    return {n: (f.mtime_ns or 0) / 1e9 for n, f in zip(names, found, strict=True)}


def content(name: str) -> str:
    """What tells one block's file from all others; two runs may write the same rows."""
    return name.removesuffix(".parquet").partition("-")[2]


def is_part(name: str) -> bool:
    """Whether a file was written while rows were decoded."""
    parsed = FileName.parse(name)
    return parsed is not None and not parsed.merged


def tokens_by_source(column: pa.ChunkedArray) -> dict[str, int]:
    """The sums of a column of (source, tokens) pairs."""
    pairs = pc.list_flatten(column)
    if not len(pairs):
        return {}
    table = pa.table({n: pc.struct_field(pairs, n) for n in ("source", "tokens")})
    sums = table.group_by("source").aggregate([("tokens", "sum")]).to_pylist()
    return {str(row["source"]): row["tokens_sum"] or 0 for row in sums}


def _line(store: Store, name: str, seconds: float) -> dict[str, Any]:
    table = read_columns(store, name, _SUMMED)
    sources = tokens_by_source(table["drafter_tokens"])
    return {
        "content": content(name),
        "seconds": seconds,
        "rows": table.num_rows,
        "completion_tokens": pc.sum(table["completion_tokens"]).as_py() or 0,
        "drafter_tokens": [{"source": s, "tokens": t} for s, t in sorted(sources.items())],
    }
