"""Faults 11 and 12: rows that cannot be decoded, and ids that cannot be used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.config import PromptConfig
from pipeline.run import run
from tests.pipeline.faults.oracle import check_output, config_of, prompts
from tests.pipeline.standin import REFUSED, StandIn

pytestmark = pytest.mark.usefixtures("ray_cluster")

BAD: list[tuple[bytes | None, int | None, str]] = [
    (b"", None, "prompt_empty"),
    (b" \n", None, "prompt_empty"),
    (None, None, "prompt_null"),
    (b"\xff\xfe", None, "invalid_unicode"),
    (b"x" * 999, None, "prompt_too_long"),
    (b"fine", 0, "bad_parameter"),
    (b"fine", 9999, "bad_parameter"),
    (REFUSED.encode(), None, "model_output_invalid"),
]


def test_fault_11_each_bad_row_has_its_code_and_harms_no_other(tmp_path: Path) -> None:
    good = prompts(30)
    count = good.num_rows
    texts = [text.encode() for text in good["prompt"].to_pylist()]
    limits: list[int | None] = [None] * count
    guilty = {}
    for i, (text, limit, code) in enumerate(BAD):
        texts.insert(3 * i, text)
        limits.insert(3 * i, limit)
        guilty[3 * i] = code
    ids = list(range(len(texts)))
    prompt = pa.array(texts, pa.binary())
    table = pa.table({"id": ids, "prompt": prompt, "max_tokens": pa.array(limits, pa.int32())})
    config = config_of(tmp_path, table, shards=2, row_parameters=("max_tokens",))
    report = run(config, engine_factory=StandIn())

    shown = [None if text is None else text.decode(errors="replace") for text in texts]
    rows = check_output(config, pa.table({"id": ids, "prompt": shown}), guilty)
    codes = [code for _, _, code in BAD]
    assert report.errors_by_code == {code: codes.count(code) for code in sorted(codes)}
    assert (report.rows_ok, report.rows_error) == (count, len(BAD))
    for i in guilty:
        assert rows[i]["completion"] is None
        assert rows[i]["error_message"]


def test_fault_11_messages_that_are_none(tmp_path: Path) -> None:
    chats: list[Any] = [
        [{"role": "user", "content": "hello"}],
        [{"role": "user", "content": None}],
        [{"role": "nobody", "content": "hello"}],
        [],
        None,
    ]
    config = config_of(
        tmp_path,
        pa.table({"id": list(range(5)), "prompt": chats}),
        prompt=PromptConfig(mode="chat"),
    )
    report = run(config, engine_factory=StandIn())
    assert report.errors_by_code == {"prompt_empty": 1, "prompt_invalid": 2, "prompt_null": 1}
    assert report.rows_ok == 1


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        ([1, None, 3], "1 null values"),
        ([1, 2, 1], "1 ids more than once, 1 for one"),
        ([1.0, 2.0, 3.0], "of type double"),
        (pa.array([b"\xff", b"a", b"b"]).view(pa.string()), "not UTF-8"),
        (None, "has no column 'id'"),
    ],
)
def test_fault_12_ids_are_refused_before_anything_starts(
    tmp_path: Path, ids: Any, words: str
) -> None:
    columns = {"prompt": ["a", "b", "c"]} | ({} if ids is None else {"id": ids})
    table = pa.table(columns)
    config = config_of(tmp_path, table)
    with pytest.raises(ValueError) as caught:
        run(config, engine_factory=StandIn(refuses_to_load=True))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "shard-0.parquet" in str(caught.value)
    assert not Path(config.output).exists()
