"""Nights as they are: real Parquet, real Ray, real leases; a stand-in for the model alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.nightly.file import NightlyFile
from jobs.nightly.night import Night, night_of
from jobs.nightly.outlook import look_at, plan_of
from jobs.nightly.sentences import parts, sentences
from jobs.nightly_summaries import configuration, run_date, stages_of
from jobs.plan import make_plan
from pipeline.config import RunConfig
from pipeline.errors import Locked, PipelineError
from pipeline.lease import LeaseTimes, hold
from pipeline.run import RunReport, run
from pipeline.storage import Store
from tests.jobs.test_dry_run import files_below
from tests.local_ray import ray_for_all
from tests.pipeline.standin import REFUSED, ByteTokenizer, StandIn, expected

DAY = date(2026, 11, 20)
TIMES = LeaseTimes(every=0.05, stale_after=30)
MAX_TOKENS = 8


@pytest.fixture(scope="module")
def a_ray() -> Iterator[None]:
    """A Ray for all runs of this file, unless there is one already."""
    with ray_for_all():
        yield


pytestmark = pytest.mark.usefixtures("a_ray")


class Nights:
    """A nightly job on a stand-in, and what reached its engine."""

    def __init__(self, folder: Path, **tables: Any) -> None:
        self.folder = folder
        self.factory = StandIn(log=str(folder / "log"))
        file = NightlyFile.model_validate(
            {
                "input": str(folder / "in"),
                "output": str(folder / "out"),
                "model": "-",
                "keep": ["lang"],
                "sampling": {"max_tokens": MAX_TOKENS},
                "engine": {"rows_per_block": 12},
                **tables,
            }
        )
        (folder / "in").mkdir(exist_ok=True)
        self.night: Night = night_of(file, engine_factory=self.factory)

    def shard(self, name: str, texts: dict[str, str | None], day: date = DAY) -> Path:
        path = self.folder / "in" / f"date={day}" / f"{name}.parquet"
        path.parent.mkdir(exist_ok=True)
        told = [None if t is None else t[:40] for t in texts.values()]
        columns = {"id": list(texts), "text": list(texts.values()), "told": told}
        pq.write_table(pa.table(columns | {"lang": ["en"] * len(texts)}), path)
        return path

    def decode(self, config: RunConfig) -> RunReport:
        return run(config, engine_factory=self.factory, lease_times=TIMES)

    def tick(self, day: date = DAY, **more: Any) -> Any:
        return run_date(self.night, day, **{"decode": self.decode, "lease_times": TIMES} | more)

    def rows(self, day: date = DAY) -> dict[str, dict[str, Any]]:
        table = pq.read_table(self.folder / "out" / f"date={day}")
        rows = {row["id"]: row for row in table.to_pylist()}
        assert len(rows) == len(table), "an id came out twice"
        return rows

    def summary(self, text: str) -> str:
        """What the stand-in makes of a text in the night's prompt."""
        template = self.night.base.prompt.template
        assert template is not None
        prompt = ByteTokenizer().chat(
            [{"role": "user", "content": template.replace("{document_text}", text)}]
        )
        return expected(prompt, MAX_TOKENS, special=False)

    def reduced(self, text: str) -> str:
        """A long document's summary, worked out here."""
        assert self.night.budget is not None
        while len(text.encode()) > self.night.budget:
            cut = parts(text, lambda texts: [len(t.encode()) for t in texts], self.night.budget)
            text = "\n\n".join(self.summary(part) for part in cut)
        return self.summary(text)


LONG = "".join(f"Number {i} of the long report says little. " for i in range(120))
TEXTS: dict[str, str | None] = {
    "a": "The first document is short.",
    "b": "The second document, {braces} and all, is short as well.",
    "long": LONG,
    "blank": " \n ",
    "null": None,
}


def test_a_night_its_second_tick_and_a_shard_that_came_late(tmp_path: Path) -> None:
    nights = Nights(tmp_path, summary={"reference_column": "told"})
    assert nights.tick().state == "empty"
    nights.shard("one", TEXTS)
    outlook = look_at(nights.night, DAY)
    assert (outlook.rows, outlook.left, outlook.long) == (5, 5, 1)
    plan = plan_of(nights.night, DAY, True)
    assert plan.rows == 5 and plan.rows_tokenised == 5 and plan.hours
    assert not (tmp_path / "out").exists()

    done = nights.tick()
    rows = nights.rows()
    assert rows.keys() == TEXTS.keys()
    for name in ("a", "b"):
        assert rows[name]["completion"] == nights.summary(TEXTS[name] or "")
    assert rows["long"]["completion"] == nights.reduced(LONG)
    assert rows["long"]["document_parts"] == outlook.parts > 8
    assert "parts-2" in done.stages, "so many summaries of parts need parts themselves"
    assert {rows[name]["status"] for name in ("blank", "null")} == {"error"}
    assert rows["a"]["lang"] == "en" and rows["a"]["speedup"] == 1.5
    assert (done.state, done.rows_error) == ("done", 2)
    parts_run = pq.read_table(Path(stages_of(nights.night, DAY)) / "parts-1")
    assert parts_run.num_rows == outlook.parts and "speedup" in parts_run.column_names

    kept = json.loads((tmp_path / "out" / f"date={DAY}" / "_admg" / "quality.json").read_text())
    assert (kept["rows"], kept["looked_at"], kept["rows_error"]) == (5, 3, 2)
    assert kept["rows_with_reference"] == 3 and set(kept["rouge"]) == {"rouge1", "rouge2", "rougeL"}
    assert kept["stages"].keys() == done.stages.keys() and kept["copy_rate"] == 0

    check_plan_of_more_rows(nights, done.stages["summaries"])

    first = nights.factory.submitted()
    assert nights.tick().state == "nothing new"
    assert nights.factory.submitted() == first

    late = "".join(f"A late line, {i}. " for i in range(20))
    nights.shard("two", {"c": "It came late.", "late": late})
    assert look_at(nights.night, DAY).left == 2
    again = nights.tick()
    after = nights.rows()
    assert {name: after[name] for name in rows} == rows, "a committed row was decoded again"
    assert after["c"]["completion"] == nights.summary("It came late.")
    assert after["late"]["completion"] == nights.reduced(late)
    assert again.stages["summaries"].rows_reused == 5
    new = nights.factory.submitted()[len(first) :]
    assert len(new) == 2 + after["late"]["document_parts"]
    assert not set(new) & set(first)


def check_plan_of_more_rows(nights: Nights, done: RunReport) -> None:
    """What a dry run says of an output that is there, with two rows more in its input."""
    config = configuration(nights.night, DAY)
    rows = pq.read_table(config.input[0]).slice(0, 2)
    rows = rows.set_column(0, "id", pa.array(["new 1", "new 2"]))
    (nights.folder / "more").mkdir()
    pq.write_table(rows, nights.folder / "more" / "two.parquet")
    config = replace(config, input=(*config.input, str(nights.folder / "more")), actors=2)
    before = files_below(nights.folder)
    mean = done.completion_tokens / done.rows_ok
    # Two actors are twice as fast as one where each has a machine, and share the CPUs of this one.
    for address, times in (("127.0.0.1:1", 2), ("", 1)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RAY_ADDRESS", address)
            patch.setattr("jobs.plan.usable_cores", lambda: 8)
            plan = make_plan(config, with_sample=False, engine_factory=nights.factory)
        assert files_below(nights.folder) == before
        assert (plan.rows, plan.rows_left, plan.rows_tokenised) == (7, 2, 2)
        assert plan.completion_tokens_left == round(2 * mean)
        assert plan.hours is not None
        seconds = 2 * mean / (times * done.tokens_per_second)
        assert plan.hours * 3600 == pytest.approx(seconds)
        assert "earlier runs" in plan.basis[0]


def test_a_night_that_was_ended_in_the_middle_goes_on(tmp_path: Path) -> None:
    nights = Nights(tmp_path)
    report = "".join(f"Line {i} of the report. " for i in range(14))
    nights.shard(
        "one", {"a": "Short.", "b": report, "c": f"{report}{REFUSED}.", "d": "REFUSED. " * 30}
    )

    def dies(config: RunConfig) -> RunReport:
        if config.output.endswith(f"out/date={DAY}"):
            raise PipelineError("the node is gone")
        return nights.decode(config)

    with pytest.raises(PipelineError):
        nights.tick(decode=dies)
    before = nights.factory.submitted()
    assert before and not (tmp_path / "out" / f"date={DAY}").exists()
    done = nights.tick()
    assert done.stages["parts-1"].rows_reused == done.stages["parts-1"].rows_total
    assert len(nights.factory.submitted()) == len(before) + 3
    rows = nights.rows()
    assert rows["b"]["completion"] == nights.reduced(report)
    # A part that failed is told, a document without any part is an error row.
    assert (rows["c"]["status"], rows["c"]["document_parts_failed"]) == ("ok", 1)
    assert rows["d"]["status"] == "error"
    assert rows["d"]["document_parts_failed"] == rows["d"]["document_parts"] > 1
    assert done.rows_error == 2 + rows["d"]["document_parts"]


def test_two_ticks_at_once_run_once(tmp_path: Path) -> None:
    nights = Nights(tmp_path)
    nights.shard("one", {"a": "Short."})
    with hold(Store(stages_of(nights.night, DAY)), TIMES), pytest.raises(Locked, match="locked by"):
        nights.tick()
    assert not nights.factory.submitted()


def test_documents_can_be_cut_instead(tmp_path: Path) -> None:
    nights = Nights(tmp_path, summary={"long_documents": "truncate"})
    nights.shard("one", TEXTS)

    def look(config: RunConfig) -> RunReport:
        raise PipelineError(json.dumps(pq.read_table(config.input[0]).to_pylist()))

    with pytest.raises(PipelineError) as ended:
        nights.tick(decode=look)
    rows = {row["id"]: row for row in json.loads(str(ended.value))}
    begin = rows["long"]["document_text"]
    assert begin in _beginnings(LONG) and rows["long"]["document_truncated"]
    assert 0 <= (nights.night.budget or 0) - len(begin) < 50
    assert [rows[n]["document_text"] for n in ("a", "blank", "null")] == [TEXTS["a"], None, None]


def _beginnings(text: str) -> list[str]:
    found = sentences(text)
    return ["".join(found[:i]) for i in range(1, len(found))]


def test_a_root_that_is_not_there_is_no_empty_night(tmp_path: Path) -> None:
    nights = Nights(tmp_path)
    (tmp_path / "in").rmdir()
    with pytest.raises(ValueError, match="there is no such folder"):
        nights.tick()
