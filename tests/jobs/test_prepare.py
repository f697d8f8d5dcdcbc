"""Prompt shards out of every kind of source."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import Result

from jobs.demo_prompts import demo_source, shorten

Call = Callable[..., Result]
WriteRows = Callable[..., Path]


def rows_of(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(folder).to_pylist()
    return rows


def refused(result: Result) -> str:
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    return result.output.removeprefix("Error: ").strip()


def test_the_demo_is_real_text_of_many_lengths_in_several_shards(
    admg_batch: Call, tmp_path: Path
) -> None:
    out = tmp_path / "demo"
    assert admg_batch("prepare", "demo", "--output", out).exit_code == 0
    assert len(list(out.glob("*.parquet"))) >= 4
    rows = rows_of(out)
    assert len({row["id"] for row in rows}) == len(rows) > 60
    lengths = sorted(len(row["prompt"]) for row in rows)
    assert lengths[0] < 400 and lengths[-1] > 2500
    assert len(set(lengths)) > 40
    row = next(row for row in rows if row["id"] == "assert")
    assert row["topic"] == 'The "assert" statement'
    assert row["prompt"].startswith("Summarise") and "debugging assertions" in row["prompt"]


def test_fewer_demo_rows_are_spread_over_as_many_shards(admg_batch: Call, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    assert admg_batch("prepare", "demo", "--output", out, "--limit", 10).exit_code == 0
    assert len(list(out.glob("*.parquet"))) >= 4
    ids = [row["id"] for row in rows_of(out)]
    assert len(ids) == 10 and ids[0][0] == "a" and ids[-1][0] >= "t"


def test_what_is_cut_off_makes_further_demo_rows() -> None:
    from pydoc_data.topics import topics

    (whole,) = demo_source(max_chars=10**6).parts
    (split,) = demo_source(max_chars=2000, split=True).parts
    (table,) = split.tables()
    ids, prompts = table["id"].to_pylist(), table["prompt"].to_pylist()
    assert len(ids) >= 200 and len(set(ids)) == len(ids)
    assert {i.partition("#")[0] for i in ids} == set(topics)
    question = prompts[0].partition("\n\n")[0] + "\n\n"
    assert max(map(len, prompts)) <= 2000 + len(question)
    told = "".join("".join(p.removeprefix(question).split()) for p in prompts)
    (together,) = whole.tables()
    texts = (p.removeprefix(question) for p in together["prompt"].to_pylist())
    assert told == "".join("".join(text.split()) for text in texts)


def test_every_demo_prompt_fits_a_small_context() -> None:
    (part,) = demo_source().parts
    for table in part.tables():
        assert max(len(p) for p in table["prompt"].to_pylist()) < 3200


def test_long_texts_end_after_a_paragraph() -> None:
    assert shorten("a\n\nb", 10) == "a\n\nb"
    assert shorten("x" * 60 + "\n\n" + "y" * 60, 100) == "x" * 60
    assert shorten("x" * 200, 100) == "x" * 100


def test_jsonl_becomes_shards_with_its_own_ids(
    admg_batch: Call, tmp_path: Path, write_jsonl: WriteRows
) -> None:
    rows = [{"key": i, "text": f"t{i}", "n": None if i < 4 else i} for i in range(7)]
    path, out = write_jsonl(rows), tmp_path / "out"
    args = ("--id-column", "key", "--prompt-column", "text", "--keep", "n", "--rows-per-shard", 3)
    result = admg_batch("prepare", "jsonl", path, "--output", out, *args)
    assert result.exit_code == 0, result.output
    assert "7 prompts in 3 shards" in result.output
    files = sorted(out.iterdir())
    assert [f.name for f in files] == [f"part-{i:05d}.parquet" for i in range(3)]
    # A column that is null in the first shard has its type there nevertheless.
    assert len({pq.read_schema(f) for f in files}) == 1
    assert rows_of(out) == [{"id": i, "prompt": f"t{i}", "n": rows[i]["n"]} for i in range(7)]


def test_ids_are_made_of_file_and_row_and_stay(
    admg_batch: Call, tmp_path: Path, write_jsonl: WriteRows
) -> None:
    write_jsonl([{"prompt": p} for p in "abc"], "one.jsonl")
    write_jsonl([{"prompt": p} for p in "abc"], "two.jsonl")
    made = []
    for shard in (1, 100):
        out = tmp_path / f"out{shard}"
        args = ("--output", out, "--rows-per-shard", shard)
        paths = (tmp_path / "one.jsonl", tmp_path / "two.jsonl")
        assert admg_batch("prepare", "jsonl", *paths, *args).exit_code == 0
        made.append([row["id"] for row in rows_of(out)])
    assert made[0] == made[1]
    assert made[0] == [f"{name}.jsonl:{row}" for name in ("one", "two") for row in (1, 2, 3)]


def test_a_template_makes_the_prompt(
    admg_batch: Call, tmp_path: Path, write_jsonl: WriteRows
) -> None:
    template = tmp_path / "t.txt"
    template.write_text("{title} ({year}): {{x}}")
    path = write_jsonl([{"id": "a", "title": "T", "year": 7}, {"id": "b", "title": "U"}])
    out = tmp_path / "out"
    args = ("--output", out, "--template", template)
    assert admg_batch("prepare", "jsonl", path, *args).exit_code == 0
    # What lacks a field has no prompt, and the run makes an error row of it.
    assert [row["prompt"] for row in rows_of(out)] == ["T (7): {x}", None]


def test_csv_values_stay_text(admg_batch: Call, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv.gz"
    path.write_bytes(gzip.compress(b'\xef\xbb\xbfid,prompt\n007,"a, ""b""\nc"\n008,d\n'))
    out = tmp_path / "out"
    assert admg_batch("prepare", "jsonl", path, "--output", out).exit_code == 0
    assert rows_of(out) == [{"id": "007", "prompt": 'a, "b"\nc'}, {"id": "008", "prompt": "d"}]


def test_parquet_folders_and_globs(admg_batch: Call, tmp_path: Path, shards: Path) -> None:
    for number, given in enumerate((shards, shards / "part-*.parquet")):
        out = tmp_path / f"out{number}"
        args = ("--keep", "lang", "--limit", 4, "--output", out)
        assert admg_batch("prepare", "parquet", given, *args).exit_code == 0
        rows = rows_of(out)
        assert [row["id"] for row in rows] == ["0-0", "0-1", "0-2", "1-0"]
        assert rows[0] == {"id": "0-0", "prompt": "Count to 2:", "lang": "en"}


def test_chat_messages_are_prompts_too(admg_batch: Call, tmp_path: Path) -> None:
    messages = [[{"role": "user", "content": "Hi"}]]
    source = tmp_path / "in.parquet"
    pq.write_table(pa.table({"id": [1], "prompt": messages}), source)
    out = tmp_path / "out"
    assert admg_batch("prepare", "parquet", source, "--output", out).exit_code == 0
    assert rows_of(out) == [{"id": 1, "prompt": messages[0]}]


@pytest.mark.parametrize("saved", [True, False])
def test_local_hugging_face_datasets(admg_batch: Call, tmp_path: Path, saved: bool) -> None:
    import datasets

    folder, out = tmp_path / "data", tmp_path / "out"
    made = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]})
    if saved:
        made.save_to_disk(str(folder))
    else:
        made.to_parquet(str(folder / "train.parquet"))
    args = ("--prompt-column", "text", "--keep", "label", "--output", out)
    result = admg_batch("prepare", "dataset", folder, *args)
    assert result.exit_code == 0, result.output
    assert rows_of(out) == [
        {"id": "data/train:1", "prompt": "a", "label": 0},
        {"id": "data/train:2", "prompt": "b", "label": 1},
    ]


@pytest.mark.parametrize(
    ("rows", "args", "message"),
    [
        (['{"id": 1, "prompt": "a"}', "{"], (), "rows.jsonl, line 2 is not JSON"),
        (["[1]"], (), "rows.jsonl, line 1 is no JSON object"),
        ([], (), "has no rows"),
        ([{"id": 1, "promt": "a"}], (), "--prompt-column is 'prompt', which the input does not "),
        ([{"id": 1, "prompt": 3}], (), "the prompt column 'prompt' is int64: it must be text"),
        ([{"id": 0.5, "prompt": "a"}], (), "the id column 'id' is double: it must be text or "),
        ([{"prompt": "a"}], ("--id-column", "key"), "the columns are prompt"),
        ([{"id": 1, "prompt": "a"}, {"prompt": "b"}], (), "rows.jsonl, row 2 has no id"),
        ([{"id": 1, "prompt": "a"}], ("--keep", "id"), "--keep is 'id'"),
        ([{"id": 1, "prompt": "a"}, {"id": "x", "prompt": "b"}], (), "different types"),
        ([{"prompt": "a"}], ("--rows-per-shard", "0"), "--rows-per-shard is 0"),
        ([{"prompt": "a"}], ("--template", "none.txt"), "--template is 'none.txt'"),
    ],
)
def test_what_cannot_be_prepared_is_said(
    admg_batch: Call,
    tmp_path: Path,
    write_jsonl: WriteRows,
    rows: list[Any],
    args: tuple[str, ...],
    message: str,
) -> None:
    out = tmp_path / "out"
    said = refused(admg_batch("prepare", "jsonl", write_jsonl(rows), "--output", out, *args))
    assert message in said
    assert not list(out.glob("*"))


def test_a_near_miss_is_suggested(admg_batch: Call, tmp_path: Path, write_jsonl: WriteRows) -> None:
    path = write_jsonl([{"id": 1, "promt": "a"}])
    said = refused(admg_batch("prepare", "jsonl", path, "--output", tmp_path / "out"))
    assert said.endswith("did you mean 'promt'?")


@pytest.mark.parametrize(
    ("command", "content", "message"),
    [
        ("jsonl", b"a,b\n1\n", "line 2 does not have the header's 2 fields"),
        ("jsonl", b"", "has no header line"),
        ("parquet", b"no parquet", "is not Parquet"),
    ],
)
def test_files_that_are_not_what_they_should_be(
    admg_batch: Call, tmp_path: Path, command: str, content: bytes, message: str
) -> None:
    path = tmp_path / ("x.csv" if command == "jsonl" else "x.parquet")
    path.write_bytes(content)
    assert message in refused(admg_batch("prepare", command, path, "--output", tmp_path / "out"))


def test_missing_sources_are_named(admg_batch: Call, tmp_path: Path) -> None:
    args = ("--output", tmp_path / "out")
    assert "no-such.jsonl has no input" in refused(
        admg_batch("prepare", "jsonl", "no-such.jsonl", *args)
    )
    said = refused(admg_batch("prepare", "dataset", tmp_path / "nowhere", *args))
    assert "cannot be loaded" in said


def test_an_output_in_use_is_kept_unless_asked(
    admg_batch: Call, tmp_path: Path, write_jsonl: WriteRows
) -> None:
    path, out = write_jsonl([{"prompt": "a"}, {"prompt": "b"}]), tmp_path / "out"
    first = admg_batch("prepare", "jsonl", path, "--output", out, "--rows-per-shard", 1)
    assert first.exit_code == 0
    again = ("prepare", "jsonl", path, "--output", out, "--limit", 1)
    assert "already holds 2 Parquet files" in refused(admg_batch(*again))
    assert len(rows_of(out)) == 2
    assert admg_batch(*again, "--overwrite").exit_code == 0
    assert [row["prompt"] for row in rows_of(out)] == ["a"]


def test_a_failure_in_the_middle_leaves_the_old_shards(
    admg_batch: Call, tmp_path: Path, write_jsonl: WriteRows
) -> None:
    out = tmp_path / "out"
    good = write_jsonl([{"id": 1, "prompt": "old"}], "good.jsonl")
    assert admg_batch("prepare", "jsonl", good, "--output", out).exit_code == 0
    # The id is missing only in the second batch, when shards of the first are written already.
    rows = [{"id": i, "prompt": "new"} for i in range(4096)] + [{"id": None, "prompt": "new"}]
    args = ("--output", out, "--rows-per-shard", 100, "--overwrite")
    bad = write_jsonl(rows, "bad.jsonl")
    assert "row 4097 has no id" in refused(admg_batch("prepare", "jsonl", bad, *args))
    assert rows_of(out) == [{"id": 1, "prompt": "old"}]
    assert [f.name for f in out.iterdir()] == ["part-00000.parquet"]
