"""The worker of `bench gpu`: its cells, and what their times are worth."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.bench.gpu.cells import FULL, Cell
from jobs.bench.gpu.costs import Costs, draft_of, spread
from jobs.bench.gpu.worth import Timed, by_cost, seconds_of, speedup


def test_speedups_by_cost() -> None:
    def cell(part: Any, seconds: float, **fields: Any) -> Timed:
        return Timed(Cell(part, 8, 512, **fields), {"batch": 8, "round_seconds": seconds})

    found = [
        cell("decode", 1.0),
        cell("verify", 1.1, drafts=2),
        cell("verify", 1.3, drafts=4),
        cell("draft", 1.3 + 4 * 0.25, drafts=4, weights="int4"),
    ]
    best = by_cost(found)[0]
    values = {
        k: (1 - 0.9 ** (k + 1)) / 0.1 / (0.25 * k + v)
        for k, v in {1: 1.05, 2: 1.1, 3: 1.2, 4: 1.3, 5: 1.4, 6: 1.5, 7: 1.6, 8: 1.7}.items()
    }
    assert best.speedup == pytest.approx(max(values.values()))
    assert values[best.draft_tokens] == max(values.values())
    assert speedup(3, 0.0, 1.0, 1.0, 1.0) == 4.0
    assert seconds_of([(1, 2.0)], 9) == 2.0
    # Without a plain step of the same batch and context nothing can be said, nor of what is noise.
    assert not by_cost(found[1:])
    assert not by_cost([*found[:3], cell("draft", 1.29, drafts=4)])


@pytest.fixture(scope="module")
def costs() -> Costs:
    made = Costs()
    made.load({"shape": "tiny", "weights": "full", "threads": 1})
    return made


@pytest.mark.parametrize(
    "cell",
    [
        Cell("decode", 3, 100),
        Cell("draft", 2, 130, dropped=2, share=0.5, drafts=2),
        Cell("verify", 2, 100, drafts=3),
        Cell("decode", FULL, 200),
        Cell("eager", 1, 100),
    ],
    ids=str,
)
def test_cells_are_timed_in_the_middle_of_decoding(costs: Costs, cell: Cell) -> None:
    ready = costs.prepare(cell.to_dict())
    engine = costs._engine
    assert engine is not None
    before = engine.counters
    # The shared part of the prompts was computed once, the arena holds a full batch.
    assert before.num_running == ready["batch"] and (cell.batch in (FULL, ready["batch"]))
    if ready["batch"] > 2 and cell.batch:
        assert before.num_cached_tokens > 0
    answer = costs.run()
    after = engine.counters
    rounds = (after.num_spec_steps - before.num_spec_steps) / ready["batch"]
    drafted = after.num_draft_tokens - before.num_draft_tokens
    assert drafted == cell.drafts * rounds * ready["batch"]
    assert answer["round_low"] <= answer["round_seconds"] <= answer["round_high"]
    assert answer["tokens_per_round"] == 1 + cell.drafts  # all drafts say the same token
    assert answer["context"] >= cell.context


def test_a_prefill_has_no_prompt_in_common(costs: Costs) -> None:
    ready = costs.prepare(Cell("prefill", 1, 120).to_dict())
    assert costs.run()["batch"] == ready["batch"] == 1
    assert costs._engine is not None
    assert costs._engine.counters.prompt_tokens == 4 * 120
    assert costs._engine.counters.num_cached_tokens == 0


def test_cells_that_do_not_fit_say_so(costs: Costs, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "positions" in costs.prepare(Cell("decode", 1, 2000).to_dict())["skipped"]
    monkeypatch.setattr("jobs.bench.gpu.costs.available_bytes", lambda: 10**6)
    skipped = costs.prepare(Cell("decode", 500, 128).to_dict())["skipped"]
    assert "GB of keys and values do not fit into the free memory" in skipped
    with pytest.raises(ValueError, match="no fp3 draft weights"):
        costs.load({"shape": "tiny", "weights": "fp3", "threads": 1})


def test_dropped_layers_are_spread() -> None:
    assert spread(0, 40) == () and spread(38, 40) == tuple(range(1, 39))
    assert len(set(spread(24, 40))) == 24 and max(spread(24, 40)) < 39
    assert draft_of(Cell("draft", 1, 10, dropped=30, drafts=2), 6).drop.attention == (1, 2, 3, 4)
    assert draft_of(Cell("verify", 1, 10, drafts=2), 6).drafter == "ngram"
