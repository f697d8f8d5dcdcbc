"""The stages as plain callables: every row once, errors carried along, one schema at the end."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from admg.config import SamplingParams
from admg.request import Completion, Request
from pipeline.config import PromptConfig
from pipeline.counters import Counters
from pipeline.decode import Decode
from pipeline.engine_loop import EngineDied, EngineLoop
from pipeline.factory import EngineLike
from pipeline.keys import KeySet, as_keys, row_key
from pipeline.prepare import Prepare
from pipeline.schema import (
    PROMPT,
    PROMPT_TOKEN_IDS,
    STATISTICS,
    check_statistics,
    output_schema,
)
from pipeline.stages import Detokenize, Tokenize
from tests.pipeline.standin import POISON, REFUSED, ByteTokenizer, StandIn, StandInEngine, expected

RAW = PromptConfig()
SAMPLING = SamplingParams(max_tokens=12)
ROWS = pa.table(
    {
        "id": ["a", "b", "c", "d", "e"],
        "prompt": ["first", None, "much too long " * 40, f"{REFUSED}!", "last"],
        "n": [1, None, 3, 4, 5],
    }
)
SCHEMA = output_schema(
    pa.schema([("id", pa.string()), ("n", pa.int64()), ("prompt", pa.string())]),
    "id",
    ("n", "prompt"),
)


def tokenized(table: pa.Table = ROWS, limit: int | None = 388) -> pa.Table:
    prepared = Prepare("id", ("n", "prompt"), RAW)(table)
    return Tokenize(StandIn(), RAW, limit)(prepared)


def decoded(decode: Decode, *tables: pa.Table) -> list[pa.Table]:
    async def one(table: pa.Table) -> pa.Table:
        (result,) = [out async for out in decode(table)]
        return result

    async def all_at_once() -> list[pa.Table]:
        return await asyncio.gather(*(one(table) for table in tables))

    return asyncio.run(all_at_once())


def test_statistics_columns_are_the_engines_statistics() -> None:
    check_statistics()
    assert STATISTICS[0].name == "prompt_tokens"


def test_prepare_keys_rows_and_leaves_out_what_is_committed() -> None:
    table = Prepare("id", ("n",), RAW)(ROWS)
    assert table.column_names[:3] == ["id", "n", "row_key"]
    assert table["row_key"].to_pylist()[:2] == [row_key("a", "first"), row_key("b", None)]
    committed = KeySet.of([as_keys([row_key("a", "first"), row_key("e", "changed")])])
    rest = Prepare("id", ("n",), RAW, lambda: committed)(ROWS)
    assert rest["id"].to_pylist() == ["b", "c", "d", "e"]
    everything = KeySet.of([as_keys(table["row_key"].to_pylist())])
    nothing = Prepare("id", ("n",), RAW, lambda: everything)(ROWS)
    assert nothing.num_rows == 0
    assert nothing.schema == table.schema


def test_bytes_that_are_no_text_stay_with_their_row() -> None:
    prompts = pa.array([b"fine", b"\xff\xfe", b"fine too"]).view(pa.string())
    table = Prepare("id", (), RAW)(pa.table({"id": [1, 2, 3], "prompt": prompts}))
    assert table["error_code"].to_pylist() == [None, "invalid_unicode", None]
    assert table[PROMPT].to_pylist() == ["fine", None, "fine too"]


def test_tokenize_carries_errors_and_adds_its_own() -> None:
    table = tokenized()
    assert table["error_code"].to_pylist() == [None, "prompt_null", "prompt_too_long", None, None]
    assert [len(ids) for ids in table[PROMPT_TOKEN_IDS].to_pylist()] == [6, 0, 0, 9, 5]
    assert PROMPT not in table.column_names


class Panic(BaseException):
    """As pyo3's PanicException, which is no Exception."""


class Choosy(ByteTokenizer):
    def encode(self, texts: Sequence[str], special: bool) -> list[list[int]]:
        if any("odd" in text for text in texts):
            raise ValueError("no such token\nadvice")
        if any("panic" in text for text in texts):
            raise Panic("index out of range")
        return super().encode(texts, special)


class ChoosyStandIn(StandIn):
    def tokenizer(self) -> ByteTokenizer:
        return Choosy()


def test_a_prompt_that_the_tokenizer_raises_at_is_an_error_row() -> None:
    rows = pa.table({"id": [1, 2, 3, 4], "prompt": ["a", "odd", "panic", "b"]})
    table = Tokenize(ChoosyStandIn(), RAW, 388)(Prepare("id", (), RAW)(rows))
    assert table["error_code"].to_pylist() == [None, "prompt_invalid", "prompt_invalid", None]
    assert table["error_message"].to_pylist()[1:3] == [
        "the tokenizer refuses the prompt: no such token",
        "the tokenizer refuses the prompt: index out of range",
    ]
    assert table[PROMPT_TOKEN_IDS].to_pylist() == [[256, 97], [], [], [256, 98]]


def test_chat_prompts_go_through_the_chat_template() -> None:
    chat = PromptConfig(mode="chat")
    table = Prepare("id", (), chat)(pa.table({"id": [1], "prompt": ["hi"]}))
    assert json.loads(table[PROMPT][0].as_py()) == [{"role": "user", "content": "hi"}]
    ids = Tokenize(StandIn(), chat, None)(table)[PROMPT_TOKEN_IDS][0].as_py()
    assert bytes(ids).decode() == "<user>hi<assistant>"


@pytest.mark.parametrize("detokenizes", [True, False])
def test_rows_come_out_once_and_in_the_output_schema(detokenizes: bool) -> None:
    """The engine gives text or token ids: the output is the same."""
    factory = StandIn(max_num_seqs=2, detokenizes=detokenizes)
    (table,) = decoded(Decode(factory, SAMPLING), tokenized())
    out = Detokenize(factory, SCHEMA)(table)
    assert out.schema == SCHEMA
    rows = {row["id"]: row for row in out.to_pylist()}
    assert list(rows) == ["a", "b", "c", "d", "e"]
    assert {k: (r["status"], r["error_code"], r["attempts"]) for k, r in rows.items()} == {
        "a": ("ok", None, 1),
        "b": ("error", "prompt_null", 0),
        "c": ("error", "prompt_too_long", 0),
        "d": ("error", "model_output_invalid", 1),
        "e": ("ok", None, 1),
    }
    assert rows["a"]["completion"] == expected("first", 12)
    assert rows["e"]["completion"] == expected("last", 12)
    assert rows["d"]["completion"] is None
    assert rows["d"]["error_message"] == "the logits are not finite"
    assert rows["d"]["prompt_tokens"] is None
    assert (rows["a"]["n"], rows["b"]["n"]) == (1, None)
    assert rows["a"]["drafter_tokens"] == [
        {"source": "admg", "tokens": 4 * rows["a"]["completion_tokens"]}
    ]


def test_a_block_without_good_rows_needs_no_engine() -> None:
    table = tokenized(pa.table({"id": ["x"], "prompt": pa.nulls(1, pa.string()), "n": [1]}))

    class Factory(StandIn):
        def build(self, max_num_seqs: int | None = None) -> StandInEngine:
            return Unwanted(self)

    class Unwanted(StandInEngine):
        def submit(self, request: Request) -> int:
            raise AssertionError("nothing is to be decoded")

    (out,) = decoded(Decode(Factory(), SAMPLING), table)
    assert out["status"].to_pylist() == ["error"]


def test_several_blocks_share_one_batch() -> None:
    """With the engine's places as many as the rows of all blocks, all of them run at once."""

    class Watched(StandInEngine):
        most = 0

        def step(self) -> list[Completion]:
            done = super().step()
            Watched.most = max(Watched.most, len(self._running) + len(done))
            return done

    class Factory(StandIn):
        def build(self, max_num_seqs: int | None = None) -> StandInEngine:
            return Watched(self)

    tables = [
        tokenized(
            pa.table({"id": [f"{b}.{i}" for i in range(4)], "prompt": ["p" * 30] * 4, "n": [b] * 4})
        )
        for b in range(3)
    ]
    outs = decoded(Decode(Factory(max_num_seqs=12, step_seconds=0.02), SAMPLING), *tables)
    assert [out["n"].to_pylist() for out in outs] == [[b] * 4 for b in range(3)]
    assert Watched.most > 4


def test_noise_keys_are_row_keys_and_not_places() -> None:
    seen: dict[str, list[int]] = {}

    class Recording(StandInEngine):
        def submit(self, request: Request) -> int:
            seen[request.key] = list(request.prompt_token_ids)
            return super().submit(request)

    class Factory(StandIn):
        def build(self, max_num_seqs: int | None = None) -> StandInEngine:
            return Recording(self)

    decoded(Decode(Factory(), SAMPLING), tokenized())
    assert set(seen) == {
        row_key(i, p).hex() for i, p in (("a", "first"), ("d", f"{REFUSED}!"), ("e", "last"))
    }


def test_without_safety_a_dead_engine_fails_all_its_rows_and_those_to_come() -> None:
    decode = Decode(StandIn(), SAMPLING)
    table = tokenized(pa.table({"id": ["a", "b"], "prompt": ["fine", POISON], "n": [1, 2]}))
    for _ in range(2):
        with pytest.raises(EngineDied, match="engine died: RuntimeError: the stand-in met poison"):
            decoded(decode, table, table)


def test_a_model_that_does_not_load_says_so_at_once() -> None:
    with pytest.raises(EngineDied, match="could not be loaded: OSError: the stand-in's weights"):
        Decode(StandIn(refuses_to_load=True), SAMPLING)


def test_a_submit_that_raises_is_a_death_too() -> None:
    class Broken(StandInEngine):
        def submit(self, request: Request) -> int:
            raise MemoryError("no room")

    loop = EngineLoop(lambda: Broken(StandIn()))
    futures = [loop.submit([(Request([1, 2]), None)])[0] for _ in range(3)]
    for future in futures:
        with pytest.raises(EngineDied, match="MemoryError: no room"):
            future.result(timeout=30)


def test_reports_add_up() -> None:
    """What is reported in the end is every row, those that never reached the engine included."""
    reports: list[Counters] = []
    all_in = threading.Event()

    def report(name: str, counters: Counters) -> None:
        reports.append(counters)
        if counters.rows == 5:
            all_in.set()

    (out,) = decoded(Decode(StandIn(), SAMPLING, report), tokenized())
    assert all_in.wait(timeout=30)
    done = reports[-1]
    assert (done.rows, done.rows_error) == (5, 3)
    # Tokens count as they are made, those of a row that ends in an error too.
    made = sum(v or 0 for v in out["completion_tokens"].to_pylist())
    assert done.completion_tokens == made + len(expected(f"{REFUSED}!", 12))
    assert done.speedup_seconds / done.timed_seconds == 1.5
    assert done.spec_tokens / done.num_spec_steps == 2.0


def test_engine_protocol_is_what_the_real_engine_has() -> None:
    from admg.engine import Engine

    for name in ("submit", "step", "has_work", "counters", "explain"):
        assert hasattr(Engine, name) and hasattr(EngineLike, name)


def test_key_arrays_keep_the_order_of_bytes() -> None:
    keys: list[bytes] = [row_key(i, None) for i in range(50)]
    array: Any = as_keys(keys)
    order = np.lexsort((array[:, 1], array[:, 0]))
    assert [keys[i] for i in order] == sorted(keys)
