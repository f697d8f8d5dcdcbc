"""The audit: which rows, the same tokens, times of the same rows, and what people are told."""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from admg.config import DraftConfig, Drafter, EngineConfig, SamplingParams
from admg.draft_rules import DropRule
from admg.request import Completion, Request
from admg.stats import SequenceStats
from pipeline.audit import Audit, compared
from pipeline.audit_sums import AuditSums
from pipeline.config import PromptConfig
from pipeline.counters import Counters
from pipeline.decode import Decode
from pipeline.engine_loop import EngineDied, EngineLoop
from pipeline.factory import EngineFactory, ModelFactory
from pipeline.keys import row_key
from pipeline.prepare import Prepare
from pipeline.schema import RowResult, result_columns
from pipeline.stages import Tokenize
from pipeline.summary import Summary
from tests.pipeline.standin import REFUSED, StandIn, StandInEngine
from tests.pipeline.test_stages import decoded

KEYS = [row_key(i, None).hex() for i in range(4000)]
LAW = SamplingParams(max_tokens=12)


def table_of(names: Sequence[str], factory: EngineFactory) -> pa.Table:
    prepared = Prepare("id", (), PromptConfig())(pa.table({"id": names, "prompt": names}))
    return Tokenize(factory, PromptConfig(), None, LAW)(prepared)


def audited_of(tables: Sequence[pa.Table]) -> dict[str, bool]:
    return {row["id"]: row["audited"] for table in tables for row in table.to_pylist()}


def test_a_group_is_drawn_by_its_first_key_alone() -> None:
    audit = Audit(0.25, rows=4)
    groups = audit.groups(KEYS, range(len(KEYS)))
    assert all(group == list(range(group[0], group[0] + 4)) for group in groups)
    assert len(groups) == pytest.approx(250, abs=60)  # 4.4 standard deviations
    # What other rows there are, and which of them are fit, moves nothing.
    first = groups[0][0]
    changed = [*KEYS[first : first + 1], *KEYS[-3:]]
    assert audit.groups(changed, range(4)) == [[0, 1, 2, 3]]
    assert audit.groups(changed, [1, 3]) == [[1, 3]]
    assert audit.groups(changed, []) == []
    # A higher rate takes more groups and leaves none out.
    more = Audit(0.5, rows=4).groups(KEYS, range(len(KEYS)))
    assert all(group in more for group in groups) and len(more) > len(groups)
    assert Audit(1.0, rows=3).groups(KEYS[:7], range(7)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert Audit(0.0, rows=3).groups(KEYS, range(len(KEYS))) == []


def test_the_same_blocks_have_the_same_rows_audited() -> None:
    """One actor or two, in whatever order the blocks come."""
    factory, audit = StandIn(max_num_seqs=3), Audit(0.5, rows=3)
    blocks = [table_of([f"{b}.{i}" for i in range(7)], factory) for b in range(8)]
    once = audited_of(decoded(Decode(factory, LAW, audit=audit), *blocks))
    random.Random(1).shuffle(blocks)
    halves = [Decode(factory, LAW, audit=audit) for _ in range(2)]
    twice = [audited_of(decoded(half, *blocks[i::2])) for i, half in enumerate(halves)]
    assert once == twice[0] | twice[1]
    assert 0 < sum(once.values()) < len(once)


class Noting(StandInEngine):
    """Notes who is in the engine at each step; plainly it takes three times as long."""

    together: list[set[tuple[str, bool]]]
    lies: str = ""

    def step(self) -> list[Completion]:
        inside = [r for r, _ in self._running.values()] + [r for _, r in self._waiting]
        self.together.append({(r.key, r.draft) for r in inside})
        return super().step()

    def _complete(self, handle: int, request: Request, ids: list[int]) -> Completion:
        done = super()._complete(handle, request, ids)
        if request.draft:
            return done
        lying = [7, *done.token_ids[1:]] if request.key == self.lies else done.token_ids
        return replace(done, token_ids=lying, stats=replace(done.stats, decode_seconds=3.0))


@dataclass(frozen=True)
class Noted(StandIn):
    """Builds engines that note in `together` what they hold, and answer `lies` otherwise."""

    together: Any = ()
    lies: str = ""

    def build(self, max_num_seqs: int | None = None) -> StandInEngine:
        engine = Noting(self)
        engine.together, engine.lies = self.together, self.lies
        return engine


def key_of(name: str) -> str:
    return row_key(name, name).hex()


def test_an_audited_group_has_the_engine_for_itself_twice() -> None:
    together: list[set[tuple[str, bool]]] = []
    factory = Noted(max_num_seqs=4, together=together)
    names = [[f"row {b}.{i}" for i in range(4)] for b in range(6)]
    audit = Audit(0.5, rows=2)
    outs = decoded(Decode(factory, LAW, audit=audit), *(table_of(n, factory) for n in names))
    audited = audited_of(outs)
    pairs = [n[i : i + 2] for n in names for i in (0, 2) if audited[n[i]]]
    assert pairs and len(pairs) < 12
    usual = {(key_of(n), True) for n, drawn in audited.items() if not drawn}
    groups = [{(key_of(n), draft) for n in pair} for pair in pairs for draft in (True, False)]
    for inside in together:
        assert inside <= usual or any(inside <= group for group in groups)
    for group in groups:
        assert group in together


def test_tokens_that_differ_are_found_and_error_rows_are_not_audited() -> None:
    names = ["one", "two", REFUSED, "three", "four"]
    factory = Noted(max_num_seqs=4, together=[], lies=key_of("two"))
    decode = Decode(factory, LAW, audit=Audit(1.0, rows=4))
    (out,) = decoded(decode, table_of(names, factory))
    rows = {row["id"]: row for row in out.to_pylist()}
    assert {n: (r["audited"], r["audit_identical"]) for n, r in rows.items()} == {
        "one": (True, True),
        "two": (True, False),
        REFUSED: (None, None),
        "three": (True, True),
        "four": (True, True),
    }
    timed = [n for n in names if n != REFUSED and rows[n]["completion_tokens"] > 1]
    assert timed and all(rows[n]["audit_speedup"] == pytest.approx(3.0) for n in timed)
    audit = Summary.of(out).audit
    assert (audit.rows, audit.identical) == (4, 3)
    assert audit.estimated_speedup == pytest.approx(1.5)
    assert audit.true_speedup == pytest.approx(3.0)
    assert audit.standard_error == pytest.approx(0.0, abs=1e-6)


def test_what_is_decoded_again_is_no_progress() -> None:
    reports: list[Counters] = []
    all_in = threading.Event()

    def report(counters: Counters) -> None:
        reports.append(counters)
        if counters.rows == 4:
            all_in.set()

    loop = EngineLoop(StandIn(max_num_seqs=4).build, report)
    requests = [Request([256, *name.encode()], LAW, name) for name in ("a", "b", "c", "d")]
    plain = [replace(r, draft=False) for r in requests[:3]]
    first, again = loop.submit_closed([requests[:3], plain])
    first += loop.submit([(requests[3], None)])
    done = [future.result(timeout=30) for future in first]
    assert [f.result(timeout=30).token_ids for f in again] == [c.token_ids for c in done[:3]]
    assert all_in.wait(timeout=30)
    assert reports[-1].completion_tokens == sum(len(c.token_ids) for c in done)


def test_an_engine_that_dies_in_the_audit_takes_the_block_with_it_and_no_result() -> None:
    """A block without results is not committed: it is decoded anew, and audited then."""

    class Dying(StandInEngine):
        def submit(self, request: Request) -> int:
            if not request.draft:
                raise RuntimeError("not again")
            return super().submit(request)

    class Factory(StandIn):
        def build(self, max_num_seqs: int | None = None) -> StandInEngine:
            return Dying(self)

    table = table_of(["one", "two"], Factory())
    with pytest.raises(EngineDied, match="not again"):
        decoded(Decode(Factory(), LAW, audit=Audit(1.0, rows=2)), table)
    (out,) = decoded(Decode(StandIn(), LAW, audit=Audit(1.0, rows=2)), table)
    assert out["audit_identical"].to_pylist() == [True, True]


@pytest.mark.parametrize("drafter", ["admg", "ngram", "auto"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_real_engine_gives_the_same_tokens(
    tiny_chat_model: Path, drafter: Drafter, temperature: float
) -> None:
    draft = DraftConfig(drafter, draft_tokens=3, drop=DropRule(count=1))
    engine = EngineConfig(max_num_seqs=3, draft=draft, check=True)
    factory = ModelFactory(str(tiny_chat_model), engine, "float32")
    law = SamplingParams(max_tokens=20, temperature=temperature)
    names = ["tell me about " + "the sea and " * (i % 3) + str(i) for i in range(8)]
    (out,) = decoded(Decode(factory, law, audit=Audit(1.0, rows=3)), table_of(names, factory))
    assert out["audit_identical"].to_pylist() == [True] * 8
    assert all(speedup > 0 for speedup in out["audit_speedup"].to_pylist())
    if drafter != "auto":
        assert sum(out["num_draft_tokens"].to_pylist()) > 0


class Changing:
    """The real engine, but the tokens of a row's first or second decoding are others."""

    def __init__(self, engine: Any, changed: Mapping[str, bool]) -> None:
        self._engine, self._changed = engine, changed
        self._drafts: dict[int, bool] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def submit(self, request: Request) -> int:
        handle = int(self._engine.submit(request))
        self._drafts[handle] = request.draft
        return handle

    def step(self) -> list[Completion]:
        done = []
        for c in self._engine.step():
            if c.token_ids and self._changed.get(c.key) == self._drafts[c.handle]:
                c = replace(c, token_ids=[*c.token_ids[:-1], (c.token_ids[-1] + 1) % 256])
            done.append(c)
        return done


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_what_a_near_tie_explains_is_told_from_a_mistake(
    tiny_chat_model: Path, temperature: float
) -> None:
    names = ["both times alike", "a mistake in the draft", "plain decoding at a near-tie"]
    changed = {key_of(names[1]): True, key_of(names[2]): False}

    class Factory(ModelFactory):
        def build(self, max_num_seqs: int | None = None) -> Any:
            return Changing(super().build(max_num_seqs), changed)

    engine = EngineConfig(max_num_seqs=3, draft=DraftConfig(draft_tokens=3), check=True)
    factory = Factory(str(tiny_chat_model), engine, "float32")
    law = SamplingParams(max_tokens=20, temperature=temperature)
    (out,) = decoded(Decode(factory, law, audit=Audit(1.0, rows=3)), table_of(names, factory))
    assert out["audit_identical"].to_pylist() == [True, False, False]
    assert out["audit_near_tie"].to_pylist() == [None, False, True]
    audit = Summary.of(out).audit
    assert (audit.rows, audit.identical, audit.near_ties) == (3, 1, 1)


def test_tokens_that_rejection_draws_are_scored_where_they_are_no_draws() -> None:
    first, again = completion(3, 1.0), completion(2, 1.0)
    sampled, greedy = (Request([5], SamplingParams(temperature=t), "k") for t in (1.0, 0.0))
    by_rejection, shared = Audit(1.0, by_rejection=True), Audit(1.0)
    assert by_rejection.to_score(sampled, first, again) is None
    for audit, request in ((by_rejection, greedy), (shared, sampled), (shared, greedy)):
        asked = audit.to_score(request, first, again)
        assert asked is not None and asked.forced == (0, 1, 2) and not asked.draft
        assert audit.to_score(request, first, first) is None
        assert audit.to_score(request, first, completion(0, 1.0, "error")) is None


def test_without_a_rate_nothing_is_decoded_twice() -> None:
    together: list[set[tuple[str, bool]]] = []
    factory = Noted(max_num_seqs=4, together=together)
    (out,) = decoded(Decode(factory, LAW), table_of(["one", "two"], factory))
    assert all(draft for inside in together for _, draft in inside)
    assert out["audited"].to_pylist() == [False, False]
    assert out["audit_identical"].null_count == out["audit_speedup"].null_count == 2
    assert Summary.of(out).audit.rows == 0


def completion(tokens: int, seconds: float, reason: Any = "length") -> Completion:
    stats = SequenceStats(completion_tokens=tokens, decode_seconds=seconds)
    return Completion(1, "k", list(range(tokens)), reason, stats)


def test_the_true_speedup_is_of_seconds_per_token() -> None:
    first = completion(9, 2.0)
    same = compared(first, completion(9, 3.0)).stats
    assert (same.audited, same.audit_identical, same.audit_speedup) == (True, True, 1.5)
    shorter = compared(first, completion(5, 3.0)).stats
    assert (shorter.audit_identical, shorter.audit_speedup) == (False, 3.0)
    one = compared(completion(1, 0.0), completion(1, 0.0)).stats  # the prefill's token alone
    assert (one.audited, one.audit_identical, one.audit_speedup) == (True, True, None)
    failed = completion(0, 1.0, "error")
    assert compared(failed, first) is failed
    broken = compared(first, completion(0, 1.0, "error")).stats
    assert (broken.audit_identical, broken.audit_speedup) == (False, None)


def test_sums_of_files_give_the_ratio_and_its_error() -> None:
    seconds, estimated, true = [1.0, 2.0, 4.0, 3.0], [1.0, 1.5, 2.0, 1.0], [2.0, 1.0, 1.5, 3.0]
    stats = [
        SequenceStats(
            decode_seconds=d, speedup=e, audited=True, audit_identical=i > 0, audit_speedup=t
        )
        for i, (d, e, t) in enumerate(zip(seconds, estimated, true, strict=True))
    ]
    unaudited = SequenceStats(decode_seconds=50.0, speedup=9.0)
    untimed = SequenceStats(audited=True, audit_identical=True)
    files = [[*stats[:2], unaudited], [*stats[2:], untimed], [unaudited]]
    tables = [pa.table(result_columns([RowResult(stats=s) for s in rows])) for rows in files]
    audit = Summary.total(map(Summary.of, tables)).audit
    assert (audit.rows, audit.identical, audit.timed) == (5, 4, 4)
    assert audit.estimated_speedup == pytest.approx((1 + 3 + 8 + 3) / 10)
    ratio = (2 + 2 + 6 + 9) / 10
    assert audit.true_speedup == pytest.approx(ratio)
    squares = sum((d * (t - ratio)) ** 2 for d, t in zip(seconds, true, strict=True))
    assert audit.standard_error == pytest.approx(math.sqrt(4 / 3 * squares) / 10)
    single = AuditSums.of(tables[0].slice(0, 1))
    assert (single.true_speedup, single.standard_error) == (2.0, None)
    assert AuditSums().to_dict()["true_speedup"] is None
