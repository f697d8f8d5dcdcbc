"""The tasks of the paper's comparison: rows from files and the hub, prompts, answers, ROUGE."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import Result

from jobs.evaluation.local_data import KNOWN, load_task
from jobs.evaluation.rouge import rouge_scores
from jobs.evaluation.tasks import TASKS, Example, Form, find_task, form_of, program, token_ids
from tests.conftest import SHARED_DATA

Call = Callable[..., Result]
WriteRows = Callable[..., Path]

TEN = "one two three four five six seven eight nine ten"
NEWS = [
    {"article": f"News {i}. " + "word " * (30 - i), "highlights": f"{TEN} {i}"} for i in range(6)
]
CODE = {
    "task_id": "HumanEval/0",
    "prompt": 'import math\n\n\ndef half(x):\n    return x / 2\n\n\ndef twice(x):\n    """2x."""\n',
    "entry_point": "twice",
    "canonical_solution": "    return 2 * x\n",
    "test": "def check(candidate):\n    assert candidate(half(2)) == 2\n",
}
TWICE = Example("0", CODE["prompt"], CODE["canonical_solution"], CODE["test"], "twice")


def runs(source: str) -> bool:
    try:
        exec(compile(source, "<test>", "exec"), {})
    except AssertionError:
        return False
    return True


def test_rows_by_any_of_their_names(tmp_path: Path, write_jsonl: WriteRows) -> None:
    write_jsonl(NEWS, "cnn_dailymail.jsonl")
    data = load_task("cnn_dailymail", tmp_path)
    assert data.source == "cnn_dailymail.jsonl"
    # The shortest is the worked example and stands in no other place.
    assert data.shot is not None and data.shot.text == NEWS[5]["article"]
    assert data.shot.id == "cnn_dailymail:6"
    assert sorted(e.text for e in data.examples) == sorted(r["article"] for r in NEWS[:5])
    own = [
        {"id": f"a{i}", "text": r["article"], "reference": r["highlights"]}
        for i, r in enumerate(NEWS)
    ]
    pq.write_table(pa.Table.from_pylist(own), tmp_path / "cnn_dailymail.parquet")
    again = load_task("cnn_dailymail", tmp_path)
    assert again.source == "cnn_dailymail.parquet"
    assert [e.text for e in again.examples] == [e.text for e in data.examples]
    assert {e.id for e in again.examples} == {f"a{i}" for i in range(5)}
    assert load_task("xsum", tmp_path / "cnn_dailymail.parquet").examples == again.examples


def test_more_rows_go_on_where_fewer_end(tmp_path: Path, write_jsonl: WriteRows) -> None:
    file = write_jsonl(NEWS)
    few, all_of_them = load_task("xsum", file, count=2, seed=7), load_task("xsum", file, seed=7)
    assert all_of_them.examples[:2] == few.examples
    orders = {load_task("xsum", file, seed=s).examples for s in range(8)}
    assert len(orders) > 3


def test_texts_that_are_too_long_are_left_out_and_said_so(write_jsonl: WriteRows) -> None:
    long = {"article": "word " * 801, "highlights": TEN}
    data = load_task("xsum", write_jsonl([*NEWS, long]))
    assert len(data.examples) == 5
    assert data.source == "rows.jsonl (1 of 7 longer than 800 words left out)"


def test_the_known_files_are_found(tmp_path: Path, write_jsonl: WriteRows) -> None:
    rows = [
        {"question_id": 1, "category": "writing", "turns": ["Write."]},
        *(
            {
                "question_id": 2 + i,
                "category": "summarization",
                "turns": [f"Summarize: {r['article']}"],
                "reference": [r["highlights"]],
            }
            for i, r in enumerate(NEWS)
        ),
    ]
    write_jsonl(rows, "spec_bench.jsonl")
    data = load_task("cnn_dailymail", tmp_path)
    assert data.source == "CNN/DailyMail articles of Spec-Bench"
    assert {e.text for e in data.examples} == {r["article"].strip() for r in NEWS[:5]}
    assert all(e.reference.startswith(TEN) for e in data.examples)


@pytest.mark.parametrize("name", TASKS)
def test_the_real_files_fit(name: str) -> None:
    if not (SHARED_DATA / KNOWN[name][0]).is_file():
        pytest.skip(f"needs ../shared/data/{KNOWN[name][0]}")
    data = load_task(name, SHARED_DATA)
    assert len(data.examples) >= 50
    assert (data.shot is None) == data.task.code
    if name == "xsum":
        assert max(e.reference.strip().count(". ") for e in data.examples) <= 2
    for example in data.examples:
        assert example.text.strip() and example.reference.strip()
        assert "Summarize:" not in example.text
        assert example.id and (example.test is None) != data.task.code


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("news", NEWS, "task is 'news': it must be one of cnn_dailymail, xsum, humaneval"),
        ("xsum", [{"article": "a"}], "row 1 has no reference: it must have one of reference, high"),
        ("xsum", [{"article": "", "summary": TEN}], "row 1 has no text"),
        ("xsum", [{"article": "a", "summary": "b"}], "with a reference of 8 words or more"),
        (
            "xsum",
            [{"id": 1, **NEWS[0]}, {"id": 1, **NEWS[1]}],
            "row 2 has the id '1' of an earlier",
        ),
        ("xsum", ["{"], "line 1 is not JSON"),
        ("xsum", ["[]"], "line 1 is no JSON object"),
        ("humaneval", NEWS, "row 1 has no test"),
        ("xsum", NEWS, "count is 99: "),
    ],
)
def test_what_is_wrong_with_data_is_said(
    write_jsonl: WriteRows, name: str, rows: list[Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load_task(name, write_jsonl(rows), count=99)


def test_missing_data_is_said_with_the_ways_out(tmp_path: Path) -> None:
    said = "task humaneval reads humaneval.parquet, humaneval.jsonl, HumanEval.jsonl or the folder"
    with pytest.raises(ValueError, match=f"{said} humaneval, and no --data was given"):
        load_task("humaneval", None)
    with pytest.raises(ValueError, match=r"none of them.*prepare dataset openai_humaneval"):
        load_task("humaneval", tmp_path)
    broken = tmp_path / "humaneval.parquet"
    broken.write_text("no parquet")
    with pytest.raises(ValueError, match="cannot be read as Parquet"):
        load_task("humaneval", tmp_path)


def test_prompts_of_summaries() -> None:
    task = find_task("xsum")
    shot, example = Example("1", "Long ago.", "It was\nlong ago."), Example("2", "Now.", "x")
    assert task.prompt(example, "base", shot) == (
        "Article: Long ago.\nSummary: It was long ago.\nArticle: Now.\nSummary:"
    )
    asked = task.prompt(example, "chat")
    assert "one sentence" in asked and asked.endswith("\n\nArticle:\nNow.")
    with pytest.raises(ValueError, match="task xsum has no worked example"):
        task.prompt(example, "base")


def test_a_base_models_next_article_is_no_answer() -> None:
    task = find_task("cnn_dailymail")
    assert task.stops("chat") == ()
    assert task.answer(" It rains.\nArticle: More", "base") == "It rains."
    assert task.answer(" It rains.\n\nMore", "base") == "It rains."
    assert task.answer("It rains.\n\nMore", "chat") == "It rains.\n\nMore"


def test_code_is_asked_for_and_put_together() -> None:
    task = find_task("humaneval")
    assert task.prompt(TWICE, "base") == CODE["prompt"]
    assert task.answer("    return 2 * x\n\ndef more():", "base") == "    return 2 * x\n"
    assert f"```python\n{CODE['prompt'].rstrip()}\n```" in task.prompt(TWICE, "chat")


@pytest.mark.parametrize(
    ("completion", "form", "right"),
    [
        ("    return 2 * x\n", "base", True),
        ("    return 3 * x\n", "base", False),
        ("    y = x\n    return x + y\nprint(twice(2))", "base", True),
        ("Sure:\n```python\ndef twice(x):\n    return 2 * x\n```\nDone.", "chat", True),
        ("```\ndef twice(x):\n    return math.trunc(x * 2)\n```", "chat", True),
        ("```py\nimport math\n\ndef twice(x):\n    return 3 * x\n", "chat", False),
        ("def twice(x):\n    return 2 * x", "chat", True),
        ("    return 2 * x", "chat", True),
    ],
)
def test_programs_of_answers(completion: str, form: Form, right: bool) -> None:
    answer = find_task("humaneval").answer(completion, form)
    assert runs(program(TWICE, answer)) is right


class _Tokenizer:
    """Encodes to the text itself."""

    def __init__(self, chat_template: str | None) -> None:
        self.chat_template = chat_template

    def encode(self, text: str, add_special_tokens: bool = True) -> list[str]:
        return [*(["<s>"] if add_special_tokens else []), *text]

    def apply_chat_template(self, messages: list[dict[str, str]], **_: object) -> str:
        return f"[{messages[0]['content']}]"


def test_the_form_is_the_models() -> None:
    base, chat = _Tokenizer(None), _Tokenizer("{{ }}")
    assert (form_of(base), form_of(chat)) == ("base", "chat")
    # A template says itself where the text begins.
    assert token_ids("ab", "base", base) == ["<s>", "a", "b"]
    assert token_ids("ab", "chat", chat) == ["[", "a", "b", "]"]


def test_rouge_by_hand() -> None:
    # Words: the cat sat on the mat / the cats sat quietly on a mat; stemmed "cats" is "cat".
    (score,) = rouge_scores(["The cat sat on the mat."], ["the cats sat quietly on a mat"])
    # Pairs in common: the cat, cat sat: 2 of 5 and of 6. In order: the cat sat on mat: 5 of 6, 7.
    assert score.rouge2 == pytest.approx(2 * (2 / 5) * (2 / 6) / (2 / 5 + 2 / 6))
    assert score.rouge_l == pytest.approx(2 * (5 / 6) * (5 / 7) / (5 / 6 + 5 / 7))
    same, none = rouge_scores(["a b c", ""], ["a b c", "a b c"])
    assert (same.rouge2, same.rouge_l, none.rouge2, none.rouge_l) == (1, 1, 0, 0)
    with pytest.raises(ValueError):
        rouge_scores(["a"], [])


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A hub that has `rows` and remembers how it was asked."""
    import datasets

    made = SimpleNamespace(rows=[{**r, "id": f"n{i}"} for i, r in enumerate(NEWS)], asked=[])

    def load(*args: object, **options: object) -> Any:
        made.asked.append((args, options))
        return datasets.Dataset.from_list(made.rows).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load)
    return made


def test_prepared_data_sets_are_prompts_and_data(
    admg_batch: Call, tmp_path: Path, hub: SimpleNamespace
) -> None:
    out = tmp_path / "data" / "cnn_dailymail"
    args = ("prepare", "dataset", "cnn_dailymail", "--limit", 3, "--seed", 1, "--output", out)
    assert admg_batch(*args).exit_code == 0
    ((args_given, options),) = hub.asked
    assert args_given == ("abisee/cnn_dailymail", "3.0.0")
    assert options.pop("revision") and options == {"split": "test", "streaming": True}
    rows = pq.read_table(out).to_pylist()
    assert [sorted(row) for row in rows] == [["id", "prompt", "reference", "text"]] * 3
    assert rows[0]["prompt"].startswith("Summarise") and rows[0]["text"] in rows[0]["prompt"]
    data = load_task("cnn_dailymail", tmp_path / "data")
    assert data.shot is not None
    assert {e.id for e in (*data.examples, data.shot)} == {row["id"] for row in rows}


def test_the_seed_is_the_order_of_prepared_rows(
    admg_batch: Call, tmp_path: Path, hub: SimpleNamespace
) -> None:
    orders = set()
    for number, seed in enumerate((0, 0, 1, 2, 3)):
        out = tmp_path / str(number)
        args = ("--limit", 4, "--seed", seed, "--output", out)
        assert admg_batch("prepare", "dataset", "xsum", *args).exit_code == 0
        orders.add(tuple(pq.read_table(out)["id"].to_pylist()))
    assert 2 <= len(orders) <= 4


def test_rows_without_a_text_are_left_out_and_told(
    admg_batch: Call, tmp_path: Path, hub: SimpleNamespace
) -> None:
    hub.rows = [{"id": "e", "article": " ", "highlights": TEN}, *hub.rows]
    args = ("prepare", "dataset", "xsum", "--output", tmp_path / "x")
    result = admg_batch(*args)
    assert "has no text" in result.output and "(1 so far)" in result.output
    assert {f"n{i}" for i in range(6)} == set(pq.read_table(tmp_path / "x")["id"].to_pylist())


def test_an_output_in_use_is_refused_before_anything_is_read(
    admg_batch: Call, tmp_path: Path, hub: SimpleNamespace
) -> None:
    (tmp_path / "part-00000.parquet").touch()
    result = admg_batch("prepare", "dataset", "xsum", "--output", tmp_path)
    assert result.exit_code == 2 and "already holds 1 Parquet files" in result.output
    assert hub.asked == []


def test_prepared_base_prompts_have_a_worked_example(
    admg_batch: Call, tmp_path: Path, hub: SimpleNamespace
) -> None:
    args = (
        "prepare",
        "dataset",
        "xsum",
        "--form",
        "base",
        "--limit",
        4,
        "--output",
        tmp_path / "x",
    )
    assert admg_batch(*args).exit_code == 0
    rows = pq.read_table(tmp_path / "x").to_pylist()
    assert len(rows) == 4
    firsts = {row["prompt"].partition("\nSummary:")[0] for row in rows}
    assert len(firsts) == 1 and firsts.isdisjoint(f"Article: {row['text']}" for row in rows)


def test_prepared_code_keeps_its_tests(
    admg_batch: Call, tmp_path: Path, hub: SimpleNamespace
) -> None:
    hub.rows = [CODE, {**CODE, "task_id": "HumanEval/1"}]
    out = tmp_path / "humaneval"
    args = ("prepare", "dataset", "openai_humaneval", "--form", "base", "--output", out)
    assert admg_batch(*args).exit_code == 0
    (row, _) = sorted(pq.read_table(out).to_pylist(), key=lambda row: str(row["id"]))
    assert row["prompt"] == row["text"] == CODE["prompt"]
    assert row["entry_point"] == "twice"
    data = load_task("humaneval", tmp_path)
    assert len(data.examples) == 2 and data.examples[0].test == CODE["test"]


def test_without_a_network_there_is_one_sentence(
    admg_batch: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    def load(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach 'EdinburghNLP/xsum' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", load)
    result = admg_batch("prepare", "dataset", "xsum", "--output", tmp_path / "x")
    assert result.exit_code == 2 and "Traceback" not in result.output
    (line,) = [line for line in result.output.splitlines() if line.startswith("Error")]
    assert "Couldn't reach 'EdinburghNLP/xsum' on the Hub; without a network a file" in line
    assert "xsum.jsonl or xsum.parquet" in line
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ("xsum", "--keep", "text"),
            "--keep is given: it is not for xsum, whose columns are fixed",
        ),
        (("xsum", "--subset", "a"), "--subset is given: it is not for xsum"),
        (("xsum", "--seed", "-1"), "--seed is -1: it must be between 0 and 4294967295"),
        (("xsum", "--limit", "0"), "--limit is 0: it must be at least 1"),
        (("other/xsum", "--seed", "1"), "--seed is given: it is for cnn_dailymail, xsum, openai_h"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    admg_batch: Call, tmp_path: Path, args: tuple[str, ...], message: str
) -> None:
    result = admg_batch("prepare", "dataset", *args, "--output", tmp_path / "x")
    assert result.exit_code == 2
    assert message in result.output


def test_a_folder_of_a_tasks_name_is_a_data_set(
    admg_batch: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.chdir(tmp_path)
    datasets.Dataset.from_list([{"prompt": "a"}]).save_to_disk("xsum")
    result = admg_batch("prepare", "dataset", "xsum", "--output", "out")
    assert result.exit_code == 0, result.output
    assert pq.read_table("out").to_pylist() == [{"id": "xsum/train:1", "prompt": "a"}]
