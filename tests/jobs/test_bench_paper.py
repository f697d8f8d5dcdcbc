"""`admg-batch bench paper` from end to end with a tiny model: counted, kept, resumed, shown."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from click.testing import CliRunner, Result

from admg.request import Completion
from admg.stats import SequenceStats
from jobs.bench.paper import decoding, timing
from jobs.bench.paper.numbers import lossless, rows_in, timed_rows, turn_speed
from jobs.bench.paper.page import render
from jobs.bench.paper.plots import plots
from jobs.bench.paper.record import Record
from jobs.bench.paper.settings import FULL
from jobs.cli import main
from jobs.evaluation.sandbox import Isolation, SandboxUnavailable, check_isolation
from jobs.evaluation.tasks import TASKS as TASKS_KNOWN
from tests.jobs.paper_data import write_data

Call = Callable[..., Result]
# Some of each kind: all of them take four times as long (see the slow test).
CELLS = ["main/*", "control/*", "ablation/rules/threshold*/mean/*", "ablation/bytes/*"]
CELLS += ["timed/xsum/greedy/*"]
TASKS = ["--task", "cnn_dailymail", "--task", "xsum"]


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("paper-data"))


@pytest.fixture(scope="session")
def base(tiny: Path, data: Path) -> list[object]:
    """Options of a run that takes seconds."""
    sizes = ["--prompts", 2, "--held-out", 1, "--trials", 2, "--threads", 1, "--quick"]
    return ["bench", "paper", "--model", tiny, "--data", data, *sizes, *TASKS]


@pytest.fixture(scope="session")
def whole(base: list[object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of nearly everything."""
    folder = tmp_path_factory.mktemp("paper") / "results"
    cells = [part for pattern in CELLS for part in ("--cells", pattern)]
    arguments = [*base, "--output", folder, *cells]
    done = CliRunner().invoke(main, [str(a) for a in arguments])
    assert done.exit_code == 0, done.output
    return folder


@pytest.fixture
def record(whole: Path) -> Record:
    found = Record.read(whole)
    assert found is not None
    return found


def test_every_row_of_every_drafter_is_plain_decodings(record: Record) -> None:
    same = lossless(record)
    assert same.rows == same.identical > 100
    names = {name.partition("@")[0] for name in record.cells}
    assert {"main/plain", "main/draft-verify", "main/swift", "main/random"} <= names
    assert {"main/best-fixed", "main/admg", "main/admg-filled", "main/auto"} <= names
    plain = rows_in(record, "main/plain", "xsum", "sampled")
    filled = rows_in(record, "main/admg-filled@xsum", "xsum", "sampled")
    assert plain is not None and filled is not None
    assert plain.passes == plain.committed and sum(filled.passes) < sum(plain.passes)
    assert set(plain.quality) == {"ROUGE-2", "ROUGE-L"} and not filled.quality
    assert set(plain.ended) | set(filled.ended) <= {"stop", "length"}


@pytest.mark.parametrize(
    ("ids", "ended", "limit", "right"),
    [
        ([5, 6, 7, 8], "stop", 4, True),
        ([5, 6, 7, 8], "stop", 6, True),
        ([5, 6], "length", 2, True),  # cut where plain decoding goes on
        ([5, 7], "length", 2, False),
        ([5, 6], "stop", 2, False),
        ([5, 6, 7], "stop", 4, False),  # ended early
        ([5, 6, 7, 8], "length", 4, False),
        ([5, 6, 7, 8, 9], "length", 5, False),
    ],
)
def test_a_row_that_is_not_plain_decodings_would_be_seen(
    ids: list[int], ended: Any, limit: int, right: bool
) -> None:
    plain = decoding.trail([5, 6, 7, 8])
    done = Completion(0, "", ids, ended, SequenceStats())
    assert decoding.same(done, plain, "stop", limit) is right


def test_quality_is_that_of_whole_texts(record: Record) -> None:
    assert {n: t.max_tokens for n, t in TASKS_KNOWN.items()} == FULL.whole
    assert all(FULL.whole[name] >= tokens for name, tokens in FULL.tokens.items())
    rows = record.cells["main/plain"]["rows"]["xsum/greedy"]
    rows["ended"] = ["length", "stop"]
    page = render(record, {})
    assert "1 of 2 texts were cut at 16 tokens, short of the 64 that the task allows" in page
    record.about["texts"]["xsum"]["max_tokens"] = 64
    assert "1 of 2 texts were cut at 64 tokens." in render(record, {})


def test_full_batches_are_timed_as_a_whole(
    base: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches, order = [], []
    engine, timed = decoding.Decoder.engine, timing.rows_of

    def seen(self: decoding.Decoder, draft: Any, requests: Any) -> Any:
        made = engine(self, draft, requests)
        if "/held out/" not in requests[0].key and "/" in requests[0].key:
            batches.append((made._config.max_num_seqs, len({r.key for r in requests})))
        return made

    def told(*args: Any, wall: float) -> Any:
        order.append(wall)
        return timed(*args, wall=wall)

    monkeypatch.setattr(decoding.Decoder, "engine", seen)
    monkeypatch.setattr(timing, "rows_of", told)
    only = ["--only", "timed", "--cells", "timed/xsum/greedy/*", "--repeats", "2"]
    arguments = [*base, "--output", tmp_path, *only, "--timed-batch", "4"]
    done = CliRunner().invoke(main, [str(a) for a in arguments])
    assert done.exit_code == 0, done.output
    # Plain decoding of everything comes first, then the nine systems that are timed.
    assert batches[-9:] == [(4, 6)] * 9 and len(order) == 18 and min(order) > 0
    page = (tmp_path / "paper.md").read_text()
    assert "turns of 6 prompts, 4 decoded together" in page and "whole turns" in page
    assert "Draft & Verify, its set for this kind of text, xsum, greedy" in page
    record = Record.read(tmp_path)
    assert record is not None
    rows = timed_rows(record, "plain", "xsum", "greedy")
    assert turn_speed(rows).over.tolist() == [[sum(r.tokens) for r in rows]]
    assert turn_speed(rows).under.tolist() == [[r.wall for r in rows]]


def test_what_was_timed_elsewhere_is_timed_again(record: Record) -> None:
    names = set(record.cells)
    assert record.move_to(record.run["machine"]) == []
    dropped = record.move_to({**record.run["machine"], "threads": 64})
    assert set(dropped) == {n for n in names if n.startswith(("timed/", "main/auto"))}
    assert set(record.cells) == names - set(dropped) and record.run["machine"]["threads"] == 64


def test_the_controllers_row_tells_nothing_of_what_it_left_out(whole: Path) -> None:
    text = (whole / "paper.md").read_text()
    rows = re.findall(r"^\| the controller.*$", text, re.M)
    counted = [r.split("|")[6:9] for r in rows if len(r.split("|")) == 11]
    assert counted and all(c == [" - "] * 3 for c in counted)
    modelled = text.partition("## Speedup, modelled")[2].partition("\n## ")[0]
    assert "| the controller" not in modelled and "| ADMG, our reading" in modelled


def test_the_page_is_what_the_record_says(whole: Path, record: Record) -> None:
    drawn = plots(record)
    captions = {name: caption for name, (_, caption) in drawn.items()}
    assert render(record, captions) == (whole / "paper.md").read_text()
    assert set(captions) == {"paper-controls", "paper-systems", "paper-bytes"}
    for name, (svg, _) in drawn.items():
        assert (whole / f"{name}.svg").read_text() == svg
        assert f"({name}.svg)" in (whole / "paper.md").read_text()


def test_a_number_that_changes_in_the_record_changes_on_the_page(record: Record) -> None:
    before = render(record, {})
    record.cells["main/admg-filled@xsum"]["rows"]["xsum/greedy"]["committed"][0] += 1
    assert render(record, {}) != before
    record.cells["control/1/admg"]["rows"]["xsum/greedy"]["identical"][0] = False
    same = lossless(record)
    assert same.others == ("control/1/admg",)
    page = render(record, {})
    assert f"{same.rows - 1} of {same.rows} rows" in page and "in: control/1/admg.**" in page


def test_the_page_answers_the_question(whole: Path) -> None:
    text = (whole / "paper.md").read_text()
    answer = text.partition("## Does it matter")[2].partition("## Every system")[0]
    number = r"[+-]\d\.\d\d \([+-]\d\.\d\d to [+-]\d\.\d\d\)"
    for name in ("the best fixed set in hindsight", "random sets of equal size"):
        assert re.search(rf"(better than|worse than|not told apart from) {name}: {number}", answer)
    for heading in ("Our reading of the two rules", "What could not be compared", "needs 13B"):
        assert heading in text
    for lonely in re.findall(r"^\|.*$", text, re.M):
        assert "nan" not in lonely and "inf" not in lonely.split()


def test_a_run_goes_on_where_it_was_killed(
    whole: Path, base: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "results"
    arguments = [*base, "--output", folder, "--only", "main", "--cells", "main/admg*"]
    decode = decoding.Decoder.decode
    asked: list[Any] = []

    def killed(self: decoding.Decoder, draft: Any, requests: Any) -> Any:
        asked.append(draft)
        if len(asked) == 9:  # four calibrations, two searches, plain decoding, one system
            raise KeyboardInterrupt
        return decode(self, draft, requests)

    monkeypatch.setattr(decoding.Decoder, "decode", killed)
    done = CliRunner().invoke(main, [str(a) for a in arguments])
    assert done.exit_code == 130 and "the same command goes on" in done.stderr
    first = json.loads((folder / "paper.json").read_text())["cells"]
    assert {"calibration/mean", "main/plain"} <= set(first)
    assert "not finished" in (folder / "paper.md").read_text()

    monkeypatch.setattr(decoding.Decoder, "decode", decode)
    done = CliRunner().invoke(main, [str(a) for a in arguments])
    assert done.exit_code == 0, done.output
    then = json.loads((folder / "paper.json").read_text())["cells"]
    assert {name: then[name] for name in first} == first  # seconds too: nothing was done again
    assert set(then) - set(first) <= {n for n in then if n.startswith("main/admg")}
    assert "not finished" not in (folder / "paper.md").read_text()
    # What was counted in two runs is what one run has counted.
    once = json.loads((whole / "paper.json").read_text())["cells"]
    for name in (n for n in then if "rows" in then[n]):
        for place, rows in then[name]["rows"].items():
            timed = ("prefill_seconds", "decode_seconds")
            other = once[name]["rows"][place]
            assert {k: v for k, v in rows.items() if k not in timed} == {
                k: v for k, v in other.items() if k not in timed
            }


def test_another_run_in_the_folder_is_refused(
    admg_batch: Call, whole: Path, base: list[object], tmp_path: Path
) -> None:
    folder = tmp_path / "results"
    shutil.copytree(whole, folder)
    before = (folder / "paper.json").read_bytes()
    result = admg_batch(*base, "--output", folder, "--seed", 1)
    assert result.exit_code == 2
    assert "which holds a run with seed 0 and not 1" in result.stderr
    assert (folder / "paper.json").read_bytes() == before
    record = Record.read(folder)
    assert record is not None
    record.about["model files"]["weights"] = "of another training"
    record.write(folder)
    result = admg_batch(*base, "--output", folder)
    assert result.exit_code == 2 and "which holds a run with model files" in result.stderr


def test_the_page_alone(admg_batch: Call, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    shutil.copy(whole / "paper.json", folder)
    assert admg_batch("bench", "paper", "--output", folder, "--page-only").exit_code == 0
    for name in ("paper.md", "paper-controls.svg"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()
    result = admg_batch("bench", "paper", "--output", tmp_path, "--page-only")
    assert result.exit_code == 2 and "must hold a paper.json" in result.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--prompts", 40], "--prompts and --held-out ask for 41 texts of cnn_dailymail"),
        (["--plan", "xsum=nothing.toml"], "nothing.toml"),
        (["--plan", "xsum=draft-verify:llama-2-13b"], "which has 40 layers, and not for"),
        (["--plan", "news=x"], "TASK=PLAN"),
        (["--plan", "xsum=x", "--only", "control"], "must be main or timed"),
        (["--trials", 0], "--trials is 0: it must be at least 1"),
        (["--run-code", "limits"], "left out where no task is humaneval"),
        (["--cells", "main/nothing*"], "--cells is 'main/nothing*', and no cell has such a name"),
        (["--only", "timed", "--cells", "main/*"], "--cells is 'main/*', and no cell"),
        (["--data", __file__], "a file, for 2 tasks: it must be a folder"),
        (["--timed-batch", 0], "--timed-batch is 0: it must be at least 1"),
        (["--seed", -1], "--seed is -1"),
        (["--data", "/nowhere"], "cnn_dailymail"),
    ],
)
def test_mistakes(
    admg_batch: Call, base: list[object], tmp_path: Path, options: list[object], said: str
) -> None:
    result = admg_batch(*base, "--output", tmp_path / "results", *options)
    assert result.exit_code == 2 and said in result.stderr
    assert "Traceback" not in result.stderr and not (tmp_path / "results").exists()


def an_isolation() -> Isolation:
    """One that this machine allows."""
    for isolation in get_args(Isolation):
        try:
            check_isolation(isolation)
        except SandboxUnavailable:
            continue
        found: Isolation = isolation
        return found
    pytest.skip("model-written code cannot be kept apart here")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_everything_with_code_that_is_run(
    tiny: Path, data: Path, tmp_path: Path, admg_batch: Call
) -> None:
    """All tasks, cells and columns: pytest -m slow tests/jobs/test_bench_paper.py (a minute)."""
    sizes = ["--prompts", 2, "--held-out", 1, "--trials", 20, "--threads", 1, "--quick"]
    where = ["--model", tiny, "--data", data, "--output", tmp_path]
    result = admg_batch("bench", "paper", *where, *sizes, "--run-code", an_isolation())
    assert result.exit_code == 0, result.output
    text = (tmp_path / "paper.md").read_text()
    assert "pass@1" in text and "Speedup, measured here" in text
    record = Record.read(tmp_path)
    assert record is not None
    same = lossless(record)
    assert same.identical == same.rows
    assert {name.split("/")[1] for name in record.cells if name.startswith("ablation/")} == {
        *("rules", "guards", "refresh", "bytes", "whole", "filling"),
    }
