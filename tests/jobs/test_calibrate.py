"""Calibration on a tiny model: thresholds, searches that go on, and the plans that come out."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import Result

from admg.draft_rules import DropRule
from admg.layer_sets import LayerSet
from jobs.calibrate.admg import Profile, at, jaccard, threshold_for
from jobs.calibrate.search import Search, Trial, first_sets
from jobs.job_file import JobFile
from jobs.params import plan_config, run_config
from pipeline.factory import ModelFactory

Call = Callable[..., Result]

# Best are the sets that leave out attention 2 and 3 and MLP 4, and little else.
GOOD = LayerSet((2, 3), (4,))
RULE = DropRule(count=0, margin=0.1, keep_first=0, keep_last=0)


def worth(layers: LayerSet) -> float:
    wrong = len(set(layers.attention) ^ set(GOOD.attention))
    return 2 - 0.2 * wrong - 0.15 * len(set(layers.mlps) ^ set(GOOD.mlps))


def test_the_search_finds_what_is_good() -> None:
    search = Search(None, "", 6, seed=1)
    seen = list(search.run(120, worth))
    assert search.best == Trial(GOOD, 2.0) and len(seen) == 120
    assert [t.layers for t in seen[: len(first_sets(6, 1))]] == first_sets(6, 1)
    assert seen[0].layers == LayerSet(())


def test_a_search_that_was_interrupted_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    tried: list[LayerSet] = []

    def interrupted(layers: LayerSet) -> float:
        tried.append(layers)
        if len(tried) in (5, 30):
            raise KeyboardInterrupt
        return worth(layers)

    storage = tmp_path / "search.trials"
    found: list[list[Trial]] = []
    for _ in range(3):
        search = Search(storage, "settings", 6, seed=3)
        with suppress(KeyboardInterrupt):
            list(search.run(40, interrupted))
        found.append(search.done)
    assert len(found[0]) < len(found[1]) < len(found[2]) == 40
    assert found[2][: len(found[1])] == found[1]
    whole = Search(None, "settings", 6, seed=3)
    assert list(whole.run(40, worth)) == found[2]
    assert len(tried) - 2 < 40, "a set that is known need not be tried again"
    assert Search(storage, "settings", 6, seed=3).top(3) == whole.top(3)
    assert len({t.layers for t in whole.top(3)}) == 3
    with pytest.raises(ValueError, match=r"other settings \(settings, and now others\)"):
        Search(storage, "others", 6, seed=3)


def test_what_is_no_storage_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml.trials"
    path.write_text("no journal\n")
    with pytest.raises(ValueError, match="is no storage of a search"):
        Search(path, "settings", 6, seed=3)


def test_thresholds_drop_what_is_wanted_on_average() -> None:
    profile = Profile([(0.5, 0.90, 0.95, 0.97, 0.6), (0.5, 0.91, 0.94, 0.99, 0.6)])
    rule = DropRule(count=0, fill_gaps=False, drop_tail=False)
    for count in (0, 1, 2, 3):
        threshold = threshold_for(profile, count, rule)
        assert profile.mean_count(at(rule, threshold)) == count
    halves = threshold_for(profile, 1.5, rule)
    assert profile.mean_count(at(rule, halves)) == 1.5
    assert profile.chosen(at(rule, halves)) == [(2, 3), (3,)]
    # The rules take more than the threshold does, and that counts.
    assert profile.mean_count(at(RULE, threshold_for(profile, 5, RULE))) == 5
    for count in (-1, 4):
        with pytest.raises(ValueError, match=r"--drop-count is -?\d: it must be 0 to 3 for this"):
            threshold_for(profile, count, rule)


def test_stability_is_the_mean_jaccard_index_of_two_prompts() -> None:
    assert jaccard([(1, 2), (1, 2), (1, 2)]) == 1
    assert jaccard([(1, 2), (2, 3), (5,)]) == pytest.approx((1 / 3 + 0 + 0) / 3)
    assert jaccard([(), ()]) == 1 and jaccard([(), (1,)]) == 0


@pytest.fixture
def args(tiny: Path, shards: Path, tmp_path: Path) -> Iterator[list[str]]:
    values = {"input": shards, "model": tiny, "output": tmp_path / "plan.toml", "dtype": "float32"}
    yield [
        *(part for key, value in values.items() for part in (f"--{key}", str(value))),
        *("--max-tokens", "8"),
    ]


def accepted(plan: Path, tiny: Path, shards: Path) -> dict:
    """The plan's values, after a run has taken them for this model."""
    values = {"input": [str(shards)], "output": "out", "model": str(tiny), "plan": str(plan)}
    ModelFactory.of(run_config(values, JobFile())).check()
    return tomllib.loads(plan.read_text())


def test_calibrate_admg(
    admg_batch: Call, args: list[str], tiny: Path, shards: Path, tmp_path: Path
) -> None:
    done = admg_batch("calibrate", "admg", *args, "--drop-count", "2", "--draft-tokens", "3")
    assert done.exit_code == 0, done.output
    plan = tmp_path / "plan.toml"
    values = accepted(plan, tiny, shards)
    draft = plan_config(str(plan))
    assert draft.drop.threshold == values["draft"]["similarity_threshold"]
    assert draft.draft_tokens == 3 and draft.hole_filling
    made = values["made"]
    assert made["prompts"] == 6 and made["by"] == "admg-batch calibrate admg"
    assert made["command"].startswith("admg-batch calibrate admg --input")
    assert 0 <= made["jaccard"] <= 1 and made["tokens_per_pass"] >= 1
    assert "Of 6 prompts each drops" in done.output and "100 %" in done.output
    picture = ElementTree.parse(plan.with_suffix(".svg")).getroot()
    assert picture.tag.endswith("svg") and "#0102" not in plan.with_suffix(".svg").read_text()
    assert not list(tmp_path.glob(".*.tmp"))


def test_calibrate_admg_takes_what_models_best(
    admg_batch: Call, args: list[str], tmp_path: Path
) -> None:
    done = admg_batch("calibrate", "admg", *args, "--batch", "4", "--context", "100000")
    assert done.exit_code == 0, done.output
    made = tomllib.loads((tmp_path / "plan.toml").read_text())["made"]
    rows = [line for line in done.output.splitlines() if " * " in line or line.endswith("*")]
    assert len(rows) == 1
    said = re.search(r"On 3 other prompts: .* modelled speedup ([\d.]+)\.\n", done.output)
    assert said and float(said[1]) == pytest.approx(made["value"], abs=0.001)
    assert "of 3 prompts that the threshold was not chosen by" in made["notes"]
    assert made["objective"] == "the best modelled speedup on H200, batch 4, context 100000 tokens"


def test_calibrate_draft_verify(
    admg_batch: Call, args: list[str], tiny: Path, shards: Path, tmp_path: Path
) -> None:
    command = ["calibrate", "draft-verify", *args, "--draft-tokens", "4", "--trials"]
    done = admg_batch(*command, "8")
    assert done.exit_code == 0, done.output
    plan = tmp_path / "plan.toml"
    values = accepted(plan, tiny, shards)
    assert values["made"]["trials"] == 8 and values["model"]["layers"] == 5
    assert not values["draft"]["hole_filling"] and values["draft"]["exit_threshold"] == 0.6
    assert set(values["draft"]) >= {"drop_attention", "drop_mlps", "draft_tokens"}
    assert done.output.count("100 %") >= 5, "the text is the same with every set"
    more = admg_batch(*command, "9")
    assert more.exit_code == 0, more.output
    assert "Going on after 8 trials" in more.output and "best of 9 trials" in more.output
    assert "it leans high" in values["made"]["notes"] and "the best of 5 by the" in done.output
    for other in (("--temperature", "0.5"), ("--dtype", "bfloat16")):
        changed = admg_batch(*command, "9", *other)
        assert changed.exit_code == 2 and "holds a search with other settings" in changed.output


def test_measured_sets_are_checked_by_the_clock(
    admg_batch: Call, args: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jobs.calibrate.objective import Objective

    monkeypatch.setattr(Objective, "speedup", None)
    job = tmp_path / "job.toml"
    job.write_text("[draft]\nexit_every = 2\nexit_step = 0.05\n")
    command = ["calibrate", "draft-verify", *args, "--objective", "measured", "--trials"]
    done = admg_batch(*command, "3", "--config", str(job))
    assert done.exit_code == 0, done.output
    values = tomllib.loads((tmp_path / "plan.toml").read_text())
    made = values["made"]
    assert made["objective"] == "measured tokens per second"
    assert "value is the measured tokens per second" in made["notes"]
    said = re.search(r"([\d.]+) tokens per second \(plain decoding: [\d.]+\)", done.output)
    assert said and float(said[1]) == pytest.approx(made["value"], abs=0.001)
    # A run by the plan drafts as was measured.
    assert values["draft"]["exit_every"] == 2 and values["draft"]["exit_step"] == 0.05
    assert "exit_target" not in values["draft"]
    for other in (("--batch", "3"), ("--exit-threshold", "0.5")):
        changed = admg_batch(*command, "3", "--config", str(job), *other)
        assert changed.exit_code == 2 and "holds a search with other settings" in changed.output
    changed = admg_batch(*command, "3")
    assert changed.exit_code == 2 and "'exit_every': 2" in changed.output


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--trials", "0"], "--trials is 0: it must be at least 1"),
        (["--prompts", "0"], "--prompts is 0: it must be at least 1"),
        (["--max-tokens", "0"], "--max-tokens is 0: it must be at least 1"),
        (["--device", "H201"], "device is 'H201': it must be here or one of"),
        (["--exit-threshold", "2"], "--exit-threshold is 2.0: it must be 0 to 1"),
        (["--prompt-column", "text"], "has no column 'text'"),
        (["--output", "nowhere/plan.toml"], "--output is nowhere/plan.toml: its folder must"),
    ],
)
def test_mistakes_are_found_before_the_model_is_loaded(
    admg_batch: Call, args: list[str], more: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from admg.model import Transformer

    monkeypatch.setattr(Transformer, "load", None)
    done = admg_batch("calibrate", "draft-verify", *args, *more)
    assert done.exit_code == 2, done.output
    assert said in done.output


def test_a_number_of_layers_that_the_model_lacks_is_refused_before_it_is_loaded(
    admg_batch: Call, args: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from admg.model import Transformer

    monkeypatch.setattr(Transformer, "load", None)
    done = admg_batch("calibrate", "admg", *args, "--drop-count", "6")
    assert done.exit_code == 2, done.output
    assert "--drop-count is 6: it must be 0 to" in done.output
