"""What Prometheus gets of a real Ray, and that the dashboard asks for what is there."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from admg.config import SamplingParams
from admg.request import Completion, Request
from admg.stats import EngineCounters
from pipeline.engine_loop import EngineLoop
from pipeline.metrics import EXPORTED
from tests.pipeline.standin import REFUSED, StandIn, StandInEngine, expected

DASHBOARD = Path(__file__).parents[2] / "deploy" / "grafana-dashboard.json"
LAW = SamplingParams(max_tokens=12)
PROMPTS = ("one", "two", f"{REFUSED}!")
_GROUP = re.compile(r"by \(([^)]*)\)|[{,](\w+)=")
_NAME = re.compile(r"\bray_admg_batch_\w+")
_SAMPLE = re.compile(r"^(ray_admg_batch_\w+)\{(.*)\} (\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')


class CountingEngine(StandInEngine):
    """Counts as the real engine does: two tokens drafted and one kept in each pass."""

    def step(self) -> list[Completion]:
        self._passes = getattr(self, "_passes", 0) + 1
        return super().step()

    @property
    def counters(self) -> EngineCounters:
        passes = getattr(self, "_passes", 0)
        return replace(
            super().counters,
            prompt_tokens=20,
            prefill_seconds=0.5 * passes,
            draft_seconds=0.25 * passes,
            verify_seconds=0.125 * passes,
            num_spec_steps=3 * passes,
            num_draft_tokens=6 * passes,
            num_accepted_draft_tokens=3 * passes,
            num_slots=256,
            num_slots_used=64,
        )


class Holder:
    """An actor that decodes some rows and stays."""

    def __init__(self) -> None:
        self._loop = EngineLoop(lambda: CountingEngine(StandIn()), lambda _: None)

    def decode(self) -> tuple[str, int]:
        import ray

        self._loop.count_error_rows(["prompt_null", "prompt_null", "prompt_empty"])
        rows = [(Request([256, *p.encode()], LAW, p), None) for p in PROMPTS]
        done = [future.result(timeout=30) for future in self._loop.submit(rows)]
        return ray.get_runtime_context().get_job_id(), len(done)


def scraped(text: str) -> Iterator[tuple[str, dict[str, str], float]]:
    """Samples of our metrics."""
    for name, labels, value in _SAMPLE.findall(text):
        yield name, dict(_LABEL.findall(labels)), float(value)


def queries() -> list[str]:
    """Every query of the dashboard."""
    board = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    asked = [t["expr"] for p in board["panels"] for t in p.get("targets", ())]
    return asked + [v["query"]["query"] for v in board["templating"]["list"] if "job" in v["name"]]


def test_the_dashboard_asks_for_all_that_is_declared_and_nothing_else() -> None:
    names = [set(_NAME.findall(query)) for query in queries()]
    assert all(names), "a query without a metric of ours"
    asked = set().union(*names)
    assert asked <= EXPORTED
    # Of a histogram the buckets are enough.
    assert {re.sub("_(sum|count)$", "_bucket", name) for name in EXPORTED} <= asked


def test_panels_have_places_titles_and_units_of_their_own() -> None:
    board = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    panels = board["panels"]
    assert len({p["id"] for p in panels}) == len(panels) == len({p["title"] for p in panels})
    cells = [
        (x, y)
        for p in panels
        for x in range(p["gridPos"]["x"], p["gridPos"]["x"] + p["gridPos"]["w"])
        for y in range(p["gridPos"]["y"], p["gridPos"]["y"] + p["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells)) and max(x for x, _ in cells) < 24
    for panel in panels:
        if panel["type"] == "row":
            continue
        assert panel["description"] and panel["fieldConfig"]["defaults"]["unit"]
        assert panel["datasource"]["uid"] == "${datasource}"
        assert all('job=~"$job"' in t["expr"] for t in panel["targets"])


@pytest.mark.usefixtures("ray_cluster")
def test_a_real_endpoint_has_every_name_that_the_dashboard_asks_for() -> None:
    import ray

    holder = ray.remote(num_cpus=0)(Holder).remote()
    job, done = ray.get(holder.decode.remote())
    assert done == len(PROMPTS)
    (node,) = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    end = time.monotonic() + 60
    found: dict[tuple[str, ...], float] = {}
    while time.monotonic() < end:
        with urllib.request.urlopen(url, timeout=10) as answer:
            text = answer.read().decode()
        found = {
            (name, labels.get("kind") or labels.get("error_code") or labels.get("source", "")): v
            for name, labels, v in scraped(text)
            if labels["job"] == job and "_round_seconds_bucket" not in name
        }
        if found.get(("ray_admg_batch_rows_total", "")) == 2:
            break
        time.sleep(0.5)
    names = {name for name, _, _ in scraped(text)}
    assert names == EXPORTED
    labels_of = {name: set(labels) for name, labels, _ in scraped(text)}
    for query in queries():
        for name in _NAME.findall(query):
            groups = ",".join("".join(pair) for pair in _GROUP.findall(query))
            assert set(re.findall(r"\w+", groups)) <= labels_of[name], query

    def value(name: str, label: str = "") -> float:
        return found[f"ray_admg_batch_{name}", label]

    tokens = sum(len(expected(p, 12)) for p in PROMPTS)
    assert value("tokens_total", "completion") == tokens
    assert value("rows_total", "prompt_null") == 2
    assert value("rows_total", "prompt_empty") == 1
    assert value("rows_total", "model_output_invalid") == 1
    assert value("drafter_tokens_total", "admg") == 4 * sum(
        len(expected(p, 12)) for p in PROMPTS[:2]
    )
    assert value("speedup") == 1.5
    assert value("kv_cache_use") == 0.25
    assert value("draft_tokens_total") == 2 * value("accepted_draft_tokens_total") > 0
    assert value("pass_seconds_total", "prefill") == 2 * value("pass_seconds_total", "draft")
    assert value("round_seconds_count") == value("accepted_draft_tokens_total") / 3
    ray.kill(holder)
