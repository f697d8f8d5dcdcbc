"""Outputs made without Ray: rows of given ids, prompts and fates, committed as a block is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from pipeline.errors import RowError
from pipeline.fingerprint import Fingerprint
from pipeline.keys import row_key
from pipeline.schema import RowResult, output_schema, result_columns
from pipeline.sink import commit
from pipeline.storage import Store

PRINT = Fingerprint({"model": "m", "sampling.seed": 0})
SCHEMA = output_schema(pa.schema([("id", pa.string())]), "id", ())


def text_of(row_id: str, prompt: str = "p") -> str:
    """The completion that a row must have."""
    return f"text of {row_id} {prompt}"


def rows(
    ids: Sequence[str], prompts: Sequence[str] | None = None, failed: Sequence[bool] | None = None
) -> pa.Table:
    """Result rows; by default all have the prompt "p" and succeed."""
    prompts = prompts or ["p"] * len(ids)
    failed = failed or [False] * len(ids)
    results = [
        RowResult(error=RowError("crashed", "it died"))
        if bad
        else RowResult(text=text_of(row_id, prompt))
        for row_id, prompt, bad in zip(ids, prompts, failed, strict=True)
    ]
    columns: dict[str, Any] = dict(result_columns(results))
    columns["id"] = pa.array(ids, pa.string())
    keys = [row_key(i, p) for i, p in zip(ids, prompts, strict=True)]
    columns["row_key"] = pa.array(keys, pa.binary(16))
    return pa.table(columns).select(SCHEMA.names).cast(SCHEMA)


def commit_rows(store: Store, *ids: str) -> str:
    """Commit rows; the file's name."""
    return commit(store, PRINT, rows(ids)).name
