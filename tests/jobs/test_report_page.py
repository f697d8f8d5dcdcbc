"""Pages without a browser: what they say, what they must not say, and that they do not change."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import Result

import jobs.report.compare
import jobs.report.sample
from jobs.report import read_output
from jobs.report.details import read_details, upper_share
from jobs.report.page import details_page
from jobs.report.text import shown
from pipeline.storage import Store
from tests.jobs.report_outputs import SECRET, make_output

Call = Callable[..., Result]

ALLOWED = {
    *("html", "head", "meta", "title", "style", "body", "main", "header", "nav", "section"),
    *("h1", "h2", "h3", "p", "span", "a", "b", "dl", "dt", "dd", "div", "figure", "figcaption"),
    *("details", "summary", "pre", "code", "ul", "li", "table", "thead", "tbody", "tr", "th", "td"),
    *("mark", "svg", "g", "path", "defs", "use", "text", "clippath", "rect"),
}


class Tags(HTMLParser):
    """The tags of a page, its attributes by name, its text, and what its tags leave open."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: dict[str, set[str]] = {}
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attributes:
            self.attributes.setdefault(name, set()).add(value or "")

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_output(tmp_path_factory.mktemp("page") / "summaries", 300, 12)


@pytest.fixture(scope="module")
def page(output: Path) -> Tags:
    where = output.parent / "report.html"
    return Tags(details_page(read_details(str(output)), str(where)))


def test_the_headline_and_every_plot_are_there(page: Tags) -> None:
    figures = [i for i in page.attributes["id"] if i.startswith("plot-")]
    assert sorted(i.removeprefix("plot-") for i in figures) == [
        *("acceptance", "by-prompt", "by-queue", "drafters", "dropped", "lengths"),
        *("positions", "similarity", "speedup", "throughput"),
    ]
    for part in (
        *("6 error rows", "identical", "GPU-hours", "Speedup, measured", "prompt_too_long"),
        *("3 rows", "Slowest rows", "Least accepted rows", "sampling.max_tokens", "3.11.7"),
        *("Shards left out", "2 attempts", "decoding 100.00 s", "minutes at work", "ab" * 16),
    ):
        assert part in page.text, part
    assert "drawn at random" not in page.text


def test_nothing_foreign_becomes_a_tag_and_nothing_secret_is_told(page: Tags) -> None:
    assert page.tags <= ALLOWED
    assert not [name for name in page.attributes if name.startswith("on")]
    policy = next(v for v in page.attributes["content"] if "default-src" in v)
    assert policy.startswith("default-src 'none'")
    links = page.attributes["href"] | page.attributes["xlink:href"]
    assert all(link.startswith(("#", "./summaries/")) for link in links)
    assert SECRET not in page.text and "s3://***@bucket/prompts?secret_key=***" in page.text
    assert not set(page.text) & {"\x1b", "\x00", "\u202e"}
    assert "␛[2J ⟨U+202E⟩gnp.exe ␀ {{ 7 * 7 }} $x_1$" in page.text


def test_links_lead_to_files_that_exist(page: Tags, output: Path) -> None:
    links = [link for link in page.attributes["href"] if link.startswith("./")]
    assert len(links) == 12 + 2
    assert all((output.parent / link).is_file() for link in links)


def test_the_same_output_gives_the_same_bytes(admg_batch: Call, output: Path) -> None:
    pages = [output.parent / "same-1.html", output.parent / "same-2.html"]
    for path in pages:
        assert admg_batch("report", output, "--html", path).exit_code == 0
    assert pages[0].read_bytes() == pages[1].read_bytes()
    assert not list(output.parent.glob("*.tmp"))


def test_html_and_json_together(admg_batch: Call, output: Path) -> None:
    path = output.parent / "beside.html"
    result = admg_batch("report", output, "--html", path, "--json")
    assert json.loads(result.stdout)["rows"] == 300
    assert str(path) in result.stderr and path.is_file()


def test_a_sample_is_said_to_be_one_and_stays_the_same(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = read_output(str(output))
    monkeypatch.setattr(jobs.report.sample.Sample.__init__, "__defaults__", (100,))
    sampled, again = read_output(str(output)), read_details(str(output)).report
    assert (whole.rows_sampled, sampled.rows_sampled) == (300, 100)
    assert sampled.speedup_percentiles == again.speedup_percentiles
    assert sampled.speedup == whole.speedup  # sums are of all rows
    assert sampled.speedup_percentiles["p50"] == pytest.approx(
        whole.speedup_percentiles["p50"], rel=0.1
    )
    text = Tags(details_page(read_details(str(output)), "report.html")).text
    assert "those of 100 rows, drawn at random" in text and "of all 300" in text


def test_rows_worth_a_look_are_the_right_ones(output: Path) -> None:
    table = pq.read_table(output).to_pylist()
    good = [row for row in table if row["status"] == "ok"]
    details = read_details(str(output))
    slowest = sorted(good, key=lambda r: -(r["prefill_seconds"] + r["decode_seconds"]))[:8]
    least = sorted(
        (r for r in good if r["num_draft_tokens"] >= 8), key=lambda r: r["draft_acceptance_rate"]
    )[:8]
    found = details.extremes
    assert [r["id"] for r in found["Slowest rows"]] == [r["id"] for r in slowest]
    assert [r["id"] for r in found["Least accepted rows"]] == [r["id"] for r in least]
    for row, true in zip(found["Slowest rows"], slowest, strict=True):
        assert row["completion"] == true["completion"]
        assert row["kept"] == {"topic": true["topic"]}


def test_what_is_summed_is_what_the_columns_hold(output: Path) -> None:
    table = pq.read_table(output).to_pylist()
    good = [row for row in table if row["status"] == "ok"]
    details = read_details(str(output))
    passes = sum(sum(row["acceptance_histogram"]) for row in good)
    first = sum(sum(row["acceptance_histogram"][1:]) for row in good)
    assert details.positions.reached()[0] == pytest.approx(first / passes)
    name, shares = details.layers.dropped()[0]
    dropped = sum(5 in row["dropped_attention_layers"] for row in good)
    assert name == "all rows" and shares[5] == pytest.approx(dropped / len(good))
    tokens = sum(p["tokens"] for r in good for p in r["drafter_tokens"] if p["source"] == "ngram")
    assert details.drafter_tokens["ngram"] == tokens
    assert details.course is not None
    # What was made is there, whatever time was left out between runs.
    widths = [b - a for a, b in zip(details.course.edges, details.course.edges[1:], strict=False)]
    made = sum(w * rate for w, rate in zip(widths, details.course.tokens_per_second, strict=True))
    assert made == pytest.approx(details.report.completion_tokens)
    assert details.course.seconds < 2_000 and len(details.course.pauses) == 1


def test_the_limit_of_what_may_differ() -> None:
    assert upper_share(0, 59) == pytest.approx(0.05, abs=0.001)  # 0.95^59 = 0.0485
    assert upper_share(1, 1) == 1.0
    assert 0.1 < upper_share(10, 100) < 0.17


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_hardly_any_rows(admg_batch: Call, tmp_path: Path, rows: int) -> None:
    output = make_output(tmp_path / "few", max(rows, 1))
    if not rows:
        (file,) = output.glob("*.parquet")
        pq.write_table(pq.read_table(file).slice(0, 0), file)
    result = admg_batch("report", output, "--html", tmp_path / "few.html")
    assert result.exit_code == 0, result.output
    assert f'<span class="value">{rows}</span>' in (tmp_path / "few.html").read_text()


def test_an_output_in_the_making(admg_batch: Call, tmp_path: Path) -> None:
    """First nothing is known but the rows; then there is an old manifest, and a run at work."""
    output = make_output(tmp_path / "open", 60, 6)
    state, html = output / "_admg", tmp_path / "open.html"
    manifest = (state / "manifest.json").read_text()
    (state / "manifest.json").unlink()
    run = json.loads((state / "run.json").read_text())
    (state / "run.json").unlink()
    (output / "_SUCCESS").unlink()
    assert admg_batch("report", output, "--html", html).exit_code == 0
    text = Tags(html.read_text()).text
    assert "not complete yet" in text and "hours" not in text
    (state / "manifest.json").write_text(manifest)
    (state / "run.json").write_text(json.dumps(run | {"started": "2025-10-10T01:00:00+00:00"}))
    assert admg_batch("report", output, "--html", html).exit_code == 0
    text = Tags(html.read_text()).text
    assert "2025-10-10T01:00:00+00:00." in text and "GPU-hours" not in text


def test_places_where_no_page_belongs(admg_batch: Call, output: Path, tmp_path: Path) -> None:
    for place, said in (
        (output / "report.html", "must not lie among the results"),
        (tmp_path, "must be a file and not a folder"),
        (tmp_path / "none" / "a.html", "must be in a folder that exists"),
    ):
        result = admg_batch("report", output, "--html", place)
        assert result.exit_code == 2 and said in result.output
    assert admg_batch("report", output, "--html", output / "_admg" / "r.html").exit_code == 0


def test_text_is_shown_as_it_is_where_it_does_no_harm() -> None:
    assert shown("näive 漢字 \n\t<b> می‌خواهم 👩‍🚀") == "näive 漢字 \n\t<b> می‌خواهم 👩‍🚀"
    assert shown("a\x07\x9b\u2028\u200b") == "a␇⟨U+009B⟩⟨U+2028⟩⟨U+200B⟩"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    """A million rows: `pytest -m slow tests/jobs/test_report_page.py` (two minutes)."""
    peaks = []
    for name, files in (("small", 4), ("large", 50)):
        output = make_output(tmp_path / name, 20_000)
        (first,) = output.glob("*.parquet")
        for number in range(1, files):
            (output / f"copy-{number}.parquet").hardlink_to(first)
        assert sum(pq.read_metadata(f).num_rows for f in output.glob("*.parquet")) == files * 20_000
        html = tmp_path / f"{name}.html"
        command = [sys.executable, "-c", _PEAK, "report", str(output), "--html", str(html)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(int(done.stderr.split("peak ")[1].split()[0]))
        assert re.search(r"those of 20,000 rows, drawn", html.read_text())
    assert peaks[1] < peaks[0] + 100_000


_PEAK = """
import resource, sys
from jobs.cli import main
try:
    main()
finally:
    print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)
"""


def test_outputs_beside_each_other(
    admg_batch: Call, output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_output(tmp_path / "other", 320, 2, seed=2, said=" More.")
    said = json.loads(admg_batch("report", output, other, "--json").stdout)
    assert (said["rows_common"], said["rows_only_a"], said["rows_only_b"]) == (300, 0, 20)
    a, b = ({r["id"]: r for r in pq.read_table(p).to_pylist()} for p in (output, other))
    both = [i for i in a if a[i]["status"] == b[i]["status"] == "ok"]
    same = [i for i in both if a[i]["completion"] == b[i]["completion"]]
    assert 0 < len(same) < len(both)
    assert (said["both_ok"], said["same_completions"]) == (len(both), len(same))
    assert said["different_completions"] == len(both) - len(same)
    change = sum(b[i]["speedup"] - a[i]["speedup"] for i in both) / len(both)
    assert said["paired"]["speedup"]["difference"] == pytest.approx(change, abs=1e-5)
    assert said["paired"]["speedup"]["standard_error"] > 0
    for example in said["examples"]:
        whole = a[example["id"]]["completion"]
        assert example["same_characters"] <= len(whole)
        assert b[example["id"]]["completion"].endswith(example["b"].rstrip("…") or " More.")
    # Of very large outputs the same ids are taken on both sides.
    monkeypatch.setattr(jobs.report.compare, "MOST_ROWS", 100)
    part = json.loads(admg_batch("report", output, other, "--json").stdout)
    assert part["share"] == pytest.approx(100 / 320)
    assert 40 < part["rows_common"] < 180 and part["rows_only_a"] == 0


def test_settings_that_differ_are_named(admg_batch: Call, output: Path, tmp_path: Path) -> None:
    other = make_output(tmp_path / "other", 300, 1, seed=2)
    run = other / "_admg" / "run.json"
    changed = json.loads(run.read_text())
    changed["config"]["sampling"]["max_tokens"] = 64
    changed["config"]["engine"] = {"max_num_seqs": 8, "api_key": SECRET}
    run.write_text(json.dumps(changed))
    html = tmp_path / "both.html"
    result = admg_batch("report", output, other, "--html", html)
    assert result.exit_code == 0, result.output
    page = Tags(html.read_text())
    for text in (result.output, page.text):
        assert "sampling.max_tokens" in text and "engine.max_num_seqs" in text
        assert SECRET not in text and "output" not in text.split("Settings that differ")[1][:400]
    assert page.tags <= ALLOWED
    assert "\x1b" not in result.output


def test_two_outputs_of_which_one_is_none(admg_batch: Call, output: Path, tmp_path: Path) -> None:
    result = admg_batch("report", output, tmp_path)
    assert result.exit_code == 2 and "holds no results" in result.output
    assert Store(str(output)).exists("_SUCCESS")
