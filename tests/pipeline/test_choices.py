"""What actors tell of their choices, and what is kept of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from admg.acceptance import Chance
from admg.explanation import Explanation
from admg.request import Completion
from pipeline.audit import Audit
from pipeline.choices import CHOICES, Choices, read_choices
from pipeline.counters import Board
from pipeline.decode import Decode
from pipeline.storage import Store
from tests.pipeline.standin import StandIn, StandInEngine
from tests.pipeline.test_audit import LAW, decoded, table_of

SAID = Explanation(
    {"plain": 2},
    {"target": [(1, 64, 1, 0.02)]},
    {"5 tokens": Chance(0.5, 0.75)},
    {"lookup at 4": 0.5},
)


class Explaining(StandInEngine):
    """Counts its steps as plain rounds."""

    steps = 0

    def step(self) -> list[Completion]:
        self.steps += 1
        return super().step()

    def explain(self) -> Explanation:
        return replace(SAID, rounds={"plain": self.steps})


@dataclass(frozen=True)
class Explained(StandIn):
    def build(self, max_num_seqs: int | None = None) -> StandInEngine:
        return Explaining(self)


def test_each_call_ends_with_what_its_rows_were_decoded_by() -> None:
    told: list[tuple[str, Explanation]] = []
    factory = Explained()
    decode = Decode(factory, LAW, audit=Audit(), explain=lambda *words: told.append(words))
    for n in range(2):
        decoded(decode, table_of([f"row {n}.{i}" for i in range(3)], factory))
    assert len(told) == 2 and told[0][0] == told[1][0]
    first, second = (explanation.rounds["plain"] for _, explanation in told)
    assert 0 < first < second
    decoded(
        Decode(StandIn(), LAW, explain=lambda *words: told.append(words)), table_of(["x"], factory)
    )
    assert len(told) == 2, "who has no choice says nothing"


def test_the_latest_of_each_process_is_kept(tmp_path: Path) -> None:
    board, store = Board(), Store(str(tmp_path))
    (tmp_path / store.aside).mkdir(parents=True)
    choices = Choices(store)
    choices.keep(board.explanations())
    assert read_choices(store) == [] and not (tmp_path / CHOICES).exists()
    for name in ("b/2", "a/1", "b/2"):
        board.explain(name, replace(SAID, rounds={name: 1 + len(board.explanations())}))
    choices.keep(board.explanations())
    one, other = read_choices(store)
    assert (one["actor"], one["rounds"]) == ("a/1", {"a/1": 2})
    assert (other["actor"], other["rounds"]) == ("b/2", {"b/2": 3})
    assert one["costs"] == {"target": [[1, 64, 1, 0.02]]}
    assert one["lookup"] == {"5 tokens": {"first": 0.5, "later": 0.75}}


def test_a_run_tells_of_all_its_launches_and_of_no_earlier_run(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    (tmp_path / store.aside).mkdir(parents=True)
    choices = Choices(store)
    for launch in ({"a/1": SAID}, {}, {"b/2": SAID}):
        choices.keep(launch)
    assert [told["actor"] for told in read_choices(store)] == ["a/1", "b/2"]
    Choices(store).keep({})  # whose drafter has no choice
    assert read_choices(store) == []


def test_storage_that_fails_fails_no_run(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file in the place of the folder")
    Choices(Store(str(tmp_path / "out"))).keep({"a/1": SAID})


@pytest.mark.parametrize("content", ["{", "[]", '{"actors": [{"rounds": {}}]}'])
def test_what_somebody_else_wrote_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "_admg").mkdir()
    (tmp_path / CHOICES).write_text(content)
    with pytest.raises(ValueError, match="changed by somebody else"):
        read_choices(Store(str(tmp_path)))
