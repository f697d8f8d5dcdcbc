"""Outputs as runs commit them, of any size, with texts that nobody should trust."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.fingerprint import Fingerprint
from pipeline.names import FileName
from pipeline.schema import output_schema

LAYERS = 30
START = 1_760_000_000
# What would change the page's title if it ran; a terminal's and a bidi control; no character.
HOSTILE = (
    "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    "</pre></details><style>*{display:none}</style> \x1b[2J \u202egnp.exe \x00 {{ 7 * 7 }} $x_1$"
)
SECRET = "planted-secret"
SCHEMA = output_schema(pa.schema([("id", pa.string()), ("topic", pa.string())]), "id", ["topic"])


def make_output(folder: Path, rows: int, files: int = 1, seed: int = 1, said: str = "") -> Path:
    """An output of so many rows; every 50th is an error row, the first ones are hostile.

    Of rows with the same number those of every seed have the same prompt, and the same completion
    except for every tenth, which `said` ends.
    """
    (folder / "_admg").mkdir(parents=True)
    random = np.random.default_rng(seed)
    seconds = START
    for file, numbers in enumerate(np.array_split(np.arange(rows), files)):
        ok = numbers % 50 != 49
        keys = np.stack([numbers, numbers], 1).astype(np.uint64)
        name = str(FileName.of(Fingerprint({"rows": rows}), keys, ok, 1))
        share = 0.2 + 0.6 * file / files
        pq.write_table(_table(numbers, ok, random, share, said), folder / name)
        seconds += int(random.integers(40, 90)) + (30_000 if file == files // 2 > 0 else 0)
        os.utime(folder / name, (seconds, seconds))
    _write_state(folder, seconds)
    return folder


def _table(
    numbers: np.ndarray, ok: np.ndarray, random: np.random.Generator, share: float, said: str
) -> pa.Table:
    count = len(numbers)
    prompts = np.exp(random.normal(6.0, 0.9, count)).astype(int) + 8
    tokens = np.minimum(128, np.exp(random.normal(4.2, 0.6, count)).astype(int) + 2)
    rate = np.clip(random.beta(4, 4, count), 0.05, 0.95)
    steps = np.maximum(1, (tokens / (1 + 3 * rate)).astype(int))
    accepted = tokens - steps
    drafted = np.maximum(1, (accepted / rate).astype(int))
    speedup = 0.7 + 0.35 * tokens / steps + random.normal(0, 0.1, count)
    audited = random.random(count) < 0.02
    base = 0.985 + 0.006 * np.sin(np.arange(LAYERS) / 3)
    base[0] = 0.61
    similarity = base + random.normal(0, 0.0015, (count, LAYERS))
    dropped = (similarity > 0.986) & (np.arange(LAYERS) > 2) & (np.arange(LAYERS) < LAYERS - 1)
    results: dict[str, list[Any]] = {
        "completion": [
            f"Summary {n} of what was said. " * 3 + (said if n % 10 == 0 else "") for n in numbers
        ],
        "finish_reason": np.where(tokens >= 128, "length", "stop").tolist(),
        "prompt_tokens": prompts.tolist(),
        "completion_tokens": tokens.tolist(),
        "mean_acceptance_length": (tokens / steps).tolist(),
        "draft_acceptance_rate": rate.tolist(),
        "acceptance_histogram": [[int(s), int(s // 2), int(s // 3), 1] for s in steps],
        "num_spec_steps": steps.tolist(),
        "num_draft_tokens": drafted.tolist(),
        "num_accepted_draft_tokens": accepted.tolist(),
        "speedup": speedup.tolist(),
        "speedup_end_to_end": (0.9 * speedup + 0.1).tolist(),
        "dropped_attention_layers": [np.flatnonzero(d).tolist() for d in dropped],
        "attention_similarity": similarity.tolist(),
        "draft_kv_saved": dropped.mean(axis=1).tolist(),
        "drafter_tokens": [
            [
                {"source": "admg", "tokens": int(d * (1 - share))},
                {"source": "ngram", "tokens": int(d * share)},
            ]
            for d in drafted
        ],
        "prefill_seconds": (prompts * 0.001).tolist(),
        "decode_seconds": (tokens * 0.05 / speedup).tolist(),
        "queue_seconds": np.exp(random.normal(1, 1, count)).tolist(),
        "audited": audited.tolist(),
        "audit_identical": [True if a else None for a in audited],
        "audit_near_tie": [None] * count,
        "audit_speedup": [
            0.97 * s if a else None for a, s in zip(audited, speedup.tolist(), strict=True)
        ],
    }
    columns = {
        name: [value if good else None for value, good in zip(values, ok, strict=True)]
        for name, values in results.items()
    }
    ids = [f"doc-{n:07d}" for n in numbers]
    code = ["prompt_too_long" if n % 100 == 49 else HOSTILE for n in numbers]
    columns |= {
        "id": [HOSTILE if n == 1 else i for n, i in zip(numbers, ids, strict=True)],
        "row_key": [hashlib.blake2b(i.encode(), digest_size=16).digest() for i in ids],
        "topic": [HOSTILE if n < 3 else f"topic {n % 7}" for n in numbers],
        "status": ["ok" if good else "error" for good in ok],
        "error_code": [None if good else c for good, c in zip(ok, code, strict=True)],
        "error_message": [None if good else HOSTILE for good in ok],
        "attempts": np.where(ok, 1, 2).tolist(),
    }
    for row in np.flatnonzero(numbers < 3):  # the slowest of all: sure to be shown
        columns["completion"][row] = HOSTILE + said
        columns["decode_seconds"][row] = 100.0
        columns["drafter_tokens"][row] = [{"source": "<b>$evil", "tokens": 3}]
    return pa.table(columns, SCHEMA)


def _write_state(folder: Path, ended: int) -> None:
    started, end = ("2025-10-09T08:53:20+00:00", "2025-10-09T20:00:00+00:00")
    config = {
        "input": [f"s3://key:{SECRET}@bucket/prompts?secret_key={SECRET}"],
        "output": str(folder),
        "model": "/models/Llama-2-13b-chat-hf",
        "actors": None,  # as many as suited: the manifest says how many these were
        "gpus_per_actor": 1.0,
        "prompt": {"template": HOSTILE},
        "sampling": {"max_tokens": 128, "stop": []},
    }
    versions = {"python": "3.11.7", "admg-batch": "0.1.0"}
    run = {"config": config, "fingerprint": "ab" * 16, "started": started, "versions": versions}
    (folder / "_admg" / "run.json").write_text(json.dumps(run))
    bad = [{"path": "x", "reason": HOSTILE}]
    facts = {"started": started, "ended": end, "rows_reused": 0, "bad_shards": bad}
    facts |= {"config": {"actors": 4}}
    manifest: dict[str, Any] = {"totals": {}, "errors_by_code": {}, "statistics": {}, "files": []}
    manifest |= {"fingerprint": "ab" * 16, "run": facts | {"tokens_per_second": 432.1}}
    (folder / "_admg" / "manifest.json").write_text(json.dumps(manifest))
    (folder / "_SUCCESS").touch()
    assert ended > START
