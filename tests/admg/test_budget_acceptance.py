"""How much acceptance drafts keep for the keys and values that they save: the real model, fp32.

Teacher-forced along the greedy text: the draft's laws p and q at temperature 1 are compared where
its last four tokens at most are its own keys and values, all of them right ones. Slow; the numbers
go into `deploy/records/budgets.md`, the bars are those that budgets were built for.

    python -m pytest -m slow -s tests/admg/test_budget_acceptance.py

takes an hour on two cores; BUDGET_PROMPTS=10 a quarter of it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from statistics import mean

import pytest
import torch
from torch import Tensor

from admg.config import DraftConfig, EngineConfig, SamplingParams
from admg.draft_rules import DropRule, WindowRule
from admg.engine import Engine
from admg.model import Transformer
from admg.request import Request
from admg.sampling import LawRow
from admg.sequence import Sequence
from admg.windows import SINKS
from jobs.bench.workloads import load_texts, tokenize
from tests.conftest import SHARED_DATA

NEW, BATCH, LONGEST, REMAKE = 80, 8, 900, 16
PROMPTS = int(os.environ.get("BUDGET_PROMPTS", "40"))
WHOLE = DropRule(count=0)


@pytest.fixture(scope="module")
def model(demo_model_path: Path) -> Transformer:
    return Transformer.load(demo_model_path, dtype=torch.float32)


@pytest.fixture(scope="module")
def prompts(demo_model_path: Path) -> list[list[int]]:
    """Summarisation prompts where their file is there, else the demo's."""
    import transformers

    found = SHARED_DATA.is_dir()
    name = "summarization" if found else "demo"
    texts = load_texts(name, SHARED_DATA if found else None, PROMPTS)
    tokenizer = transformers.AutoTokenizer.from_pretrained(demo_model_path)
    return [ids[:LONGEST] for ids in tokenize(name, texts, tokenizer, 8000)]


@pytest.fixture(scope="module")
def texts(model: Transformer, prompts: list[list[int]]) -> dict[int, list[int]]:
    """The greedy text by the prompt's index."""
    engine = engine_of(model, DraftConfig(drafter="none"))
    return {int(c.key): list(c.token_ids) for c in engine.generate(requests(prompts))}


@pytest.fixture(scope="module")
def half(
    model: Transformer, prompts: list[list[int]], texts: dict[int, list[int]]
) -> dict[str, float]:
    """Half of the heads limited."""
    draft = DraftConfig(drop=WHOLE, windows=WindowRule(share=0.5), remake_after=REMAKE)
    return measure(model, prompts, texts, draft)


def engine_of(model: Transformer, draft: DraftConfig) -> Engine:
    sizes = {"max_num_seqs": BATCH, "max_model_len": LONGEST + NEW}
    return Engine(model, EngineConfig(draft=draft, **sizes), eos_token_ids=[])


def requests(prompts: list[list[int]]) -> list[Request]:
    law = SamplingParams(max_tokens=NEW, ignore_eos=True)
    return [Request(prompt, law, key=str(i)) for i, prompt in enumerate(prompts)]


class Teacher:
    """Stands in for the sampler of the drafts, and watches that of the target."""

    def __init__(self, engine: Engine, texts: dict[int, list[int]]) -> None:
        self.texts = texts
        self.by_base: dict[int, int] = {}
        self.acceptance: dict[int, list[float]] = {}
        self._laws: dict[tuple[int, int], Tensor] = {}
        self._target = engine._sampler.draw
        engine._sampler.draw = self.watch  # type: ignore[method-assign]
        assert engine._drafting is not None and engine._drafting._own is not None
        engine._drafting._own._sampler = self  # type: ignore[assignment]

    def draw(self, logits: Tensor, rows: list[LawRow]) -> Tensor:
        """The right tokens, whatever was drafted."""
        for row, law in zip(rows, torch.softmax(logits, -1), strict=True):
            self._laws[row.base, row.position] = law
        return torch.tensor([self.texts[self.by_base[r.base]][r.position] for r in rows])

    def watch(self, logits: Tensor, rows: list[LawRow]) -> Tensor:
        """The target's tokens, its laws compared with the drafts'."""
        for row, law in zip(rows, torch.softmax(logits, -1), strict=True):
            drafted = self._laws.pop((row.base, row.position), None)
            if drafted is not None and row.position >= REMAKE:
                kept = float(torch.minimum(law, drafted).sum())
                self.acceptance.setdefault(self.by_base[row.base], []).append(kept)
        return self._target(logits, rows)


def saved(s: Sequence, model: Transformer) -> float:
    """The share of the keys and values that this sequence's plan does not read."""
    assert s.plan is not None
    sizes = (model.config.num_layers, model.config.num_kv_heads)
    return s.plan.kv_saved(*sizes, len(s.tokens), SINKS + WindowRule(share=0.0).window)


def measure(
    model: Transformer, prompts: list[list[int]], texts: dict[int, list[int]], draft: DraftConfig
) -> dict[str, float]:
    """Mean acceptance from the 17th token on with its standard error, and what was saved."""
    engine = engine_of(model, draft)
    assert engine._drafting is not None
    engine._warm_up(engine._drafting)
    teacher = Teacher(engine, texts)
    shares = []
    for request in requests(prompts):
        engine.submit(request)
    while engine.has_work:
        engine._admit()
        teacher.by_base |= {s.base: int(s.request.key) for s in engine._scheduler.running}
        engine.step()
        shares += [
            saved(s, model)
            for s in engine._scheduler.decoding()
            if len(s.completion) > REMAKE + draft.draft_tokens
        ]
    means = torch.tensor([mean(kept) for kept in teacher.acceptance.values()])
    assert len(means) == len(prompts)
    return {
        "acceptance": round(float(means.mean()), 3),
        "standard_error": round(float(means.std() / len(means) ** 0.5), 3),
        "kv_saved": round(mean(shares), 3),
    }


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("share", "bar"), [(1 / 3, 0.94), (0.5, 0.91), (2 / 3, 0.87), (5 / 6, 0.82)]
)
def test_limited_heads(model, prompts, texts, share: float, bar: float) -> None:
    draft = DraftConfig(drop=WHOLE, windows=WindowRule(share=share), remake_after=REMAKE)
    found = measure(model, prompts, texts, draft)
    print(f"\n{share:.2f} of the heads limited: {json.dumps(found)}")
    assert found["acceptance"] >= bar


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("name", "draft"),
    [
        ("plan of the prompt", {"windows": WindowRule(share=0.5)}),
        (
            "not filled",
            {"windows": WindowRule(share=0.5), "remake_after": REMAKE, "hole_filling": False},
        ),
        ("13 layers dropped", {"drop": DropRule(count=13), "remake_after": REMAKE}),
    ],
)
def test_other_ways_to_save_as_much_keep_less(model, prompts, texts, half, name, draft) -> None:
    found = measure(model, prompts, texts, DraftConfig(**({"drop": WHOLE} | draft)))
    print(f"\n{name}: {json.dumps(found)}")
    assert found["acceptance"] < half["acceptance"]
