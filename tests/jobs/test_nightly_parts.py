"""The parts of a nightly job, each on its own: dates, sentences, job file, prompts, numbers."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow as pa
import pytest
from click.testing import Result
from hypothesis import given, settings
from hypothesis import strategies as st

import jobs.nightly.old_dates as old_dates
import jobs.nightly_command as command
import jobs.nightly_summaries as nightly_summaries
import jobs.nightly_words as nightly_words
from admg.config import SamplingParams
from jobs.nightly.dates import date_of, due, folder_of, logical_date
from jobs.nightly.example import EXAMPLE
from jobs.nightly.file import NightlyFile, read_nightly_file
from jobs.nightly.night import night_of
from jobs.nightly.prompts import DOCUMENT, EXAMPLES, STOPS, has_chat, summary_prompt, with_stops
from jobs.nightly.quality import copy_rate, ends_in_a_loop, words_of
from jobs.nightly.retention import remove, too_old
from jobs.nightly.sentences import parts, sentences
from jobs.nightly.stages import Cutter, Joined, join
from jobs.nightly_summaries import DateReport
from pipeline.config import PromptConfig
from pipeline.factory import ModelTokenizer
from pipeline.lease import LeaseTimes, hold
from pipeline.prompts import PromptBuilder
from pipeline.storage import Store
from tests.pipeline.standin import ByteTokenizer, StandIn

Call = Callable[..., Result]
ROOT = Path(__file__).parents[2]


def count_bytes(texts: Any) -> list[int]:
    return [len(text.encode()) for text in texts]


# --- dates -------------------------------------------------------------------------------------

# Both changes of the clock; in Havana and Beirut they are at midnight.
ZONES = {
    "Europe/Berlin": ("2026-03-28", "2026-10-24"),
    "America/New_York": ("2026-03-07", "2026-10-31"),
    "America/Havana": ("2026-03-07", "2026-10-31"),
    "Asia/Beirut": ("2026-03-28", "2026-10-24"),
    "Australia/Lord_Howe": ("2026-04-04", "2026-10-03"),
}


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("which", [0, 1])
def test_every_day_is_due_once_when_the_clock_changes(zone: str, which: int) -> None:
    start = datetime.fromisoformat(ZONES[zone][which]).replace(tzinfo=UTC)
    ticks = [start + timedelta(minutes=15 * i) for i in range(4 * 24 * 4)]
    offsets = {tick.astimezone(ZoneInfo(zone)).utcoffset() for tick in ticks}
    assert len(offsets) == 2, "the clock changes within these days"
    days = [logical_date(tick, ZoneInfo(zone)) for tick in ticks]
    steps = {(b - a).days for a, b in pairwise(days)}
    assert steps == {0, 1}, "no day is left out and none comes back"
    for tick, day in zip(ticks, days, strict=True):
        assert day == tick.astimezone(ZoneInfo(zone)).date() - timedelta(days=1)


def test_a_nightly_tick_by_the_clock_on_the_wall_has_each_date_once() -> None:
    """02:30 comes twice in one night of autumn and never in one of spring."""
    zone = ZoneInfo("Europe/Berlin")
    twice = [datetime(2026, 10, 25, 2, 30, tzinfo=zone, fold=fold) for fold in (0, 1)]
    assert twice[0].astimezone(UTC) != twice[1].astimezone(UTC)
    assert {logical_date(tick.astimezone(UTC), zone) for tick in twice} == {date(2026, 10, 24)}
    moved = datetime(2026, 3, 29, 2, 30, tzinfo=zone).astimezone(UTC)  # that is 03:30
    assert logical_date(moved, zone) == date(2026, 3, 28)
    # 24 hours before 00:30 is another day but the one before, on one night of the year.
    late = datetime(2026, 10, 26, 0, 30, tzinfo=zone).astimezone(UTC)
    assert (late - timedelta(hours=24)).astimezone(zone).date() == date(2026, 10, 25)
    assert logical_date(late, zone) == date(2026, 10, 25)
    early = datetime(2026, 3, 30, 0, 30, tzinfo=zone).astimezone(UTC)
    assert (early - timedelta(hours=24)).astimezone(zone).date() == date(2026, 3, 28)
    assert logical_date(early, zone) == date(2026, 3, 29)


def test_the_same_moment_is_another_date_elsewhere() -> None:
    now = datetime(2026, 11, 21, 3, 0, tzinfo=UTC)
    assert logical_date(now, ZoneInfo("UTC")) == date(2026, 11, 20)
    assert logical_date(now, ZoneInfo("America/New_York")) == date(2026, 11, 19)
    assert logical_date(now, ZoneInfo("UTC"), 0) == date(2026, 11, 21)
    with pytest.raises(ValueError, match="time zone"):
        logical_date(datetime(2026, 11, 21), ZoneInfo("UTC"))


def test_missed_days_come_oldest_first() -> None:
    assert list(due(date(2026, 3, 1), 2)) == [
        date(2026, 2, 27),
        date(2026, 2, 28),
        date(2026, 3, 1),
    ]


@pytest.mark.parametrize("name", ["date=2026-02-30", "date=2026-1-1", "2026-01-01", "date=x", ""])
def test_other_folders_have_no_date(name: str) -> None:
    assert date_of(name) is None
    assert date_of(folder_of(date(2026, 1, 2))) == date(2026, 1, 2)


# --- sentences ---------------------------------------------------------------------------------

SNIPPETS = [*'aB. !?\n\t…。」"(é漢', "Dr. ", "e.g. ", ". A", "\n\n"]
TEXTS = st.lists(st.sampled_from(SNIPPETS)).map("".join)


@settings(max_examples=300)
@given(TEXTS | st.text(), st.integers(1, 40))
def test_cutting_loses_and_doubles_nothing(text: str, budget: int) -> None:
    found = sentences(text)
    assert "".join(found) == text and all(found)
    made = parts(text, count_bytes, budget)
    assert "".join(made) == text and all(made)
    assert all(len(p.encode()) <= budget or len(p) == 1 for p in made)


@settings(max_examples=100)
@given(st.lists(st.sampled_from(["Yes. ", "It rains in Lindow. ", "Who is it? "]), max_size=60))
def test_parts_end_where_sentences_end_and_are_few(said: list[str]) -> None:
    text = "".join(said)
    made = parts(text, count_bytes, 100)
    ends = {len("".join(said[:i])) for i in range(len(said) + 1)}
    places = [len("".join(made[: i + 1])) for i in range(len(made))]
    assert set(places) <= ends
    assert len(made) <= 2 * -(-len(text) // 100) + 1


class Glued(ByteTokenizer):
    """Texts that end in white space are cheaper alone than with something behind it."""

    def encode(self, texts: Any, special: bool) -> list[list[int]]:
        return [[0] * (len(t) + t.rstrip().count(". ")) for t in texts]


def test_a_part_fits_even_where_tokens_do_not_add_up() -> None:
    cutter = Cutter(Glued(), 100)
    text = "Rain. " * 200
    made = cutter.parts(text)
    assert "".join(made) == text and max(cutter.count(made)) <= 100
    assert max(cutter.count(parts(text, cutter.count, 100))) > 100, "else nothing was tried"


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("One. Two! Three?", ["One. ", "Two! ", "Three?"]),
        ("Dr. Li met J. Roe, e.g. Kim. Then?", ["Dr. Li met J. Roe, e.g. Kim. ", "Then?"]),
        ("Version 3.11 is out... and used.", ["Version 3.11 is out... and used."]),
        ('He said "No." She left.', ['He said "No." ', "She left."]),
        ("Title\n\nText. More", ["Title\n\n", "Text. ", "More"]),
        ("雨です。風も。", ["雨です。", "風も。"]),
    ],
)
def test_where_sentences_end(text: str, pieces: list[str]) -> None:
    assert sentences(text) == pieces


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "text", ["." * 300_000 + "x", "\n" * 300_000, "a" * 300_000, ". " * 99_999]
)
def test_strange_texts_take_no_longer(text: str) -> None:
    assert "".join(parts(text, count_bytes, 5000)) == text


def test_parts_of_an_earlier_cut_are_no_parts_of_this_one() -> None:
    rows = [("a", 0, "ok", "One."), *(("a", i, "ok", "Old.") for i in range(2, 6))]
    names = ("document", "part", "status", "completion")
    known: dict[int | str, Joined] = {}
    table = pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in rows])
    join({"a": ["One is told. ", "Two is not."]}, table, known)
    assert (known["a"].text, known["a"].parts, known["a"].parts_failed) == ("One.", 2, 1)


class Roomy(StandIn):
    """With a context in which the example's parts have a place."""

    def check(self) -> int | None:
        return 4000


# --- the job file ------------------------------------------------------------------------------


def test_the_example_is_a_job_and_deploy_has_it(admg_batch: Call, tmp_path: Path) -> None:
    shown = admg_batch("nightly", "--example")
    assert shown.exit_code == 0 and shown.stdout == EXAMPLE
    assert (ROOT / "deploy" / "nightly.toml").read_text(encoding="utf-8") == EXAMPLE
    path = tmp_path / "nightly.toml"
    path.write_text(shown.stdout)
    file = read_nightly_file(str(path))
    assert (file.input, file.model) == (str(tmp_path / "input"), "demo")
    # What is commented out must be right too, once somebody takes the marks away.
    lines = [line.removeprefix("# ") for line in EXAMPLE.splitlines()[6:]]
    path.write_text("\n".join(line for line in lines if "=" in line or line.startswith("[")))
    whole = read_nightly_file(str(path)).model_copy(update={"model": "m"})
    assert whole.nightly.keep_days == 90 and whole.summary.examples is not None
    night = night_of(whole, engine_factory=Roomy(), flags={"max_tokens": 8})
    assert night.base.allow_bad_shards and night.base.engine.draft.drafter == "auto"


GIVEN = 'input = "i"\noutput = "o"\nmodel = "m"\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("inputs = 'x'", "inputs is not known: did you mean input?"),
        ("[nightly]\ntimezone = 'UTC'", "nightly.timezone is not known: did you mean time_zone?"),
        ("[nightly]\nmax_tokens = 3", "max_tokens belongs into the table [sampling]"),
        (
            "[[summary.examples]]\ntxt = 'a'\nsummary = 'b'",
            "examples.0.text is missing: it must",
        ),
        ("[[summary.examples]]\ntxt = 'a'\nsummary = 'b'", "examples.0.txt is not known: did you"),
        ("[nightly]\ntime_zone = 'Mars'", "nightly.time_zone is 'Mars': it must be the name of a"),
        ("[nightly]\ntime_zone = '../x'", "nightly.time_zone is '../x': it must be the name of a"),
        ("[nightly]\ncatch_up_days = -1", "nightly.catch_up_days is -1: it must be 0 to 366"),
        (
            "[nightly]\ncatch_up_days = 7\nkeep_days = 7",
            "nightly.keep_days is 7: it must be more than nightly.catch_up_days (7)",
        ),
        ("[summary]\nstyle = 'poem'", "summary.style is 'poem': it must be 'auto', 'chat' or"),
        ("[quality]\nalarm_share = 2.0", "quality.alarm_share is 2.0: it must be a share, 0 to 1"),
        ("keep = ['document_parts']", "keep is 'document_parts': it must be another name than"),
    ],
)
def test_a_mistake_is_named_with_its_place(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "nightly.toml"
    path.write_text(text)
    with pytest.raises(ValueError) as caught:
        read_nightly_file(str(path))
    assert said in str(caught.value)
    assert all(line.startswith(str(path)) for line in str(caught.value).splitlines())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[sampling]\nmax_tokens = 0", "sampling.max_tokens is 0: it must be at least 1"),
        ("[summary]\npart_tokens = 999", "summary.part_tokens is 999: it must be at most"),
        ("[sampling]\nmax_tokens = 60", "max_tokens is 60: summaries of parts get no shorter"),
    ],
)
def test_sizes_that_cannot_be_are_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "nightly.toml"
    path.write_text(GIVEN + text)
    with pytest.raises(ValueError) as caught:
        night_of(read_nightly_file(str(path)), {}, "nightly.toml", engine_factory=StandIn())
    assert said in str(caught.value)


# --- prompts -----------------------------------------------------------------------------------


def prompt_of(config: PromptConfig, text: str) -> str:
    built = PromptBuilder(config).build({DOCUMENT: text})
    assert isinstance(built, str)
    return built


def test_base_models_are_shown_examples_and_stopped_behind_their_own() -> None:
    shown = prompt_of(summary_prompt("few-shot"), "The sea.")
    assert shown.endswith("Text:\nThe sea.\n\nSummary:\n")
    assert all(text in shown and summary in shown for text, summary in EXAMPLES)
    law = with_stops("few-shot", SamplingParams(stop=("X",)))
    assert law.stop == (*STOPS, "X")
    # What follows an example's summary is what a base model writes behind its own.
    behind = shown.split(EXAMPLES[0][1])[1]
    assert behind.startswith("\n\n###") and any(stop in behind[:8] for stop in law.stop)
    assert with_stops("chat", SamplingParams()).stop == ()


def test_chat_models_are_told() -> None:
    messages = json.loads(prompt_of(summary_prompt("chat", "Say {it} briefly."), "The {sea}."))
    assert messages == [{"role": "user", "content": "Say {it} briefly.\n\nText:\nThe {sea}."}]


def test_the_style_is_the_models(tiny: Path) -> None:
    assert has_chat(ByteTokenizer()) and not has_chat(ModelTokenizer(str(tiny)))


def test_a_base_model_is_not_chatted_with(tiny: Path) -> None:
    values = {"input": "i", "output": "o", "model": str(tiny), "summary": {"style": "chat"}}
    with pytest.raises(
        ValueError, match=r"summary\.style is 'chat', but model .* no chat template"
    ):
        night_of(NightlyFile.model_validate(values))


# --- numbers -----------------------------------------------------------------------------------


def test_copying_is_counted_in_runs_of_words() -> None:
    document = words_of("The lamps of the east quay are replaced until March, the port said.")
    assert copy_rate(words_of("The LAMPS of the east quay"), document) == 1
    assert copy_rate(words_of("A quay gets other lamps soon"), document) == 0
    assert copy_rate(words_of("of the east quay burns"), document) == 0.5
    assert copy_rate(words_of("the port"), document) == 1
    assert copy_rate([], document) is None
    assert words_of("Größe: 3,5 m - 雨です") == ["größe", "3", "5", "m", "雨", "で", "す"]


@pytest.mark.parametrize(
    ("text", "loop"),
    [
        ("no " * 12, True),
        ("no " * 11, False),
        ("It begins well. " + "the port said that " * 3, True),
        ("It begins well. " + "the port said that " * 2, False),
        ("the port said that " * 3 + "and then it ended", False),
        ("One two three four five six seven eight nine ten eleven twelve thirteen", False),
    ],
)
def test_loops_are_found(text: str, loop: bool) -> None:
    assert ends_in_a_loop(words_of(text)) == loop


# --- retention ---------------------------------------------------------------------------------


def an_output(root: Path, name: str, ours: bool = True) -> Path:
    folder = root / name
    (folder / "_admg").mkdir(parents=True)
    (folder / "x.parquet").touch()
    if ours:
        (folder / "_admg" / "run.json").write_text("{}")
    return folder


def test_only_old_dates_of_ours_go_and_never_the_newest(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    for name in ("date=2026-11-10", "date=2026-11-11", "date=2026-11-12", "date=2026-11-13"):
        an_output(root, name)
    an_output(root, "date=2026-11-01", ours=False)
    an_output(root, "date=2026-11-02 old")
    an_output(root, "2026-11-03")
    an_output(elsewhere, "real")
    (root / "date=2026-11-04").symlink_to(elsewhere / "real", target_is_directory=True)
    stage = root / ".stages" / "date=2026-11-10"
    stage.mkdir(parents=True)
    last = date(2026, 11, 13)
    assert not too_old(str(tmp_path / "none"), ".stages", last, 1)
    assert not too_old(str(root), ".stages", last, 4)
    old = too_old(str(root), ".stages", last, 2)
    assert [o.date for o in old] == [date(2026, 11, 10), date(2026, 11, 11)]
    times = LeaseTimes(every=0.05, stale_after=5)
    with hold(Store(str(root / "date=2026-11-11")), times):
        assert [remove(o, times) for o in old] == [True, False]
    assert not stage.exists() and not (root / "date=2026-11-10").exists()
    # After months without input the newest output is old too, and stays.
    far = too_old(str(root), ".stages", date(2027, 5, 1), 2)
    assert [o.date for o in far] == [date(2026, 11, 11), date(2026, 11, 12)]
    assert all(remove(o, times) for o in far)
    left = sorted(os.listdir(root))
    assert left == [
        *(".stages", "2026-11-03", "date=2026-11-01", "date=2026-11-02 old"),
        *("date=2026-11-04", "date=2026-11-13"),
    ]
    assert (elsewhere / "real" / "x.parquet").exists()


# --- the command -------------------------------------------------------------------------------


@pytest.fixture
def ticks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny: Path) -> Callable[..., Any]:
    """Ticks of the command at a time of our choosing; dates are noted and not done."""
    path = tmp_path / "nightly.toml"
    (tmp_path / "in").mkdir()
    path.write_text(
        f'input = "in"\noutput = "out"\nmodel = "{tiny}"\n[nightly]\ntime_zone = "Europe/Berlin"\n'
        "catch_up_days = 1\n[summary]\nstyle = 'few-shot'\nexamples = []\ninstruction = 'Short.'\n"
        "[sampling]\nmax_tokens = 4\n"
    )
    seen: list[date] = []

    def run_date(night: Any, day: date, decode: Any, **_: Any) -> DateReport:
        seen.append(day)
        if day == date(2026, 10, 24):
            raise ValueError("the shard is broken")
        return DateReport(day, "empty", "out")

    def tick(call: Call, now: datetime, *args: object) -> tuple[list[date], Result]:
        seen.clear()
        monkeypatch.setattr(command, "now", lambda: now.astimezone(UTC))
        result = call("nightly", "--config", path, *args)
        return list(seen), result

    monkeypatch.setattr(nightly_summaries, "run_date", run_date)
    return tick


def test_a_tick_does_its_date_and_those_before_it(admg_batch: Call, ticks: Any) -> None:
    zone = ZoneInfo("Europe/Berlin")
    days, result = ticks(admg_batch, datetime(2026, 11, 21, 0, 10, tzinfo=zone))
    assert days == [date(2026, 11, 19), date(2026, 11, 20)], result.output
    assert result.exit_code == 0
    assert result.stdout.splitlines()[1] == "date=2026-11-20: no input: nothing to do"
    day = ("--date", "2026-03-01", "--catch-up", 2)
    days, _ = ticks(admg_batch, datetime(2026, 11, 21, tzinfo=zone), *day)
    assert days == [date(2026, 2, 27), date(2026, 2, 28), date(2026, 3, 1)]
    _, result = ticks(admg_batch, datetime(2026, 11, 21, tzinfo=zone), "--date", "yesterday")
    assert result.exit_code == 2 and "--date is 'yesterday': it must be a date" in result.stderr


def test_old_outputs_go_after_a_good_tick_but_none_that_was_asked_for(
    admg_batch: Call, ticks: Any, tmp_path: Path
) -> None:
    text = (tmp_path / "nightly.toml").read_text()
    kept = text.replace("catch_up_days = 1", "catch_up_days = 1\nkeep_days = 2")
    (tmp_path / "nightly.toml").write_text(kept)
    for name in ("date=2026-11-10", "date=2026-11-11", "date=2026-11-20"):
        an_output(tmp_path / "out", name)
    now = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
    asked = ("--date", "2026-11-10", "--catch-up", 0)
    _, shown = ticks(admg_batch, now, *asked, "--dry-run")
    assert (
        "date=2026-11-11: would be removed" in shown.stdout and "11-10: would" not in shown.stdout
    )
    assert len(os.listdir(tmp_path / "out")) == 3
    _, done = ticks(admg_batch, now, *asked)
    assert done.exit_code == 0 and "date=2026-11-11: removed" in done.stdout
    assert sorted(os.listdir(tmp_path / "out")) == ["date=2026-11-10", "date=2026-11-20"]
    _, refused = ticks(admg_batch, now, "--catch-up", 2)
    assert refused.exit_code == 2 and "it must be below nightly.keep_days (2)" in refused.stderr


def test_a_date_that_fails_keeps_no_other_from_being_done(admg_batch: Call, ticks: Any) -> None:
    zone = ZoneInfo("Europe/Berlin")
    days, result = ticks(admg_batch, datetime(2026, 10, 26, 0, 10, tzinfo=zone), "--json")
    assert days == [date(2026, 10, 24), date(2026, 10, 25)]
    assert result.exit_code == 2
    assert "Error: date=2026-10-24: the shard is broken" in result.stderr
    states = [told["state"] for told in json.loads(result.stdout)["dates"]]
    assert states == ["failed", "empty"]
    assert "Traceback" not in result.output


def test_storage_that_fails_ends_its_date_alone(
    admg_batch: Call, ticks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_date(night: Any, day: date, decode: Any, **_: Any) -> DateReport:
        if day == date(2026, 11, 19):
            raise PermissionError("the bucket is closed")
        return DateReport(day, "empty", "out")

    monkeypatch.setattr(nightly_summaries, "run_date", run_date)
    now = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
    _, result = ticks(admg_batch, now)
    assert result.exit_code == 4
    assert "Error: date=2026-11-19: the bucket is closed" in result.stderr
    assert "date=2026-11-20: no input" in result.stdout


def test_what_cannot_be_removed_is_said(
    admg_batch: Call, ticks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(*_: Any) -> bool:
        raise PermissionError("the bucket is closed")

    path = tmp_path / "nightly.toml"
    path.write_text(path.read_text().replace("catch_up_days = 1", "keep_days = 1"))
    for name in ("date=2026-11-10", "date=2026-11-20"):
        an_output(tmp_path / "out", name)
    monkeypatch.setattr(old_dates, "remove", closed)
    now = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
    _, result = ticks(admg_batch, now)
    said = "Warning: date=2026-11-10: not removed: the bucket is closed"
    assert result.exit_code == 0 and said in result.stderr
    monkeypatch.setattr(old_dates, "too_old", closed)
    _, result = ticks(admg_batch, now, "--dry-run")
    assert result.exit_code == 0 and "cannot be found: the bucket is closed" in result.stderr


@pytest.mark.parametrize("place", ["input", "output"])
@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_a_file_is_no_folder_of_dates(
    admg_batch: Call, ticks: Any, tmp_path: Path, place: str, more: list[str]
) -> None:
    (tmp_path / "file").write_text("text")
    now = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
    days, result = ticks(admg_batch, now, f"--{place}", tmp_path / "file", *more)
    assert result.exit_code == 2 and not days
    assert f"Error: {place} is '{tmp_path / 'file'}': it must be a folder" in result.stderr


def test_sigterm_between_decodes_interrupts(
    admg_batch: Call, ticks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cleaned = []

    def run_date(night: Any, day: date, decode: Any, **_: Any) -> DateReport:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)  # who stops a process repeats himself
            cleaned.append(day)
        raise AssertionError("it went on")

    monkeypatch.setattr(nightly_summaries, "run_date", run_date)
    before = signal.getsignal(signal.SIGTERM)
    _, result = ticks(admg_batch, datetime(2026, 11, 21, 12, 0, tzinfo=UTC))
    assert result.exit_code == 130 and cleaned == [date(2026, 11, 19)]
    assert "To go on, give the same command" in result.stderr
    assert signal.getsignal(signal.SIGTERM) == before


def test_alarms_have_no_colours_where_nobody_wants_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    line = "ALARM date=2026-11-20: half of the [summaries] " + "are copied " * 20
    nightly_words.alarm(line)
    assert "\x1b[" in capsys.readouterr().err
    monkeypatch.setenv("TERM", "dumb")  # as --plain
    nightly_words.alarm(line)
    assert capsys.readouterr().err == f"{line}\n"
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    nightly_words.alarm(line)
    assert "31m" not in capsys.readouterr().err
