"""The order in which rows go to actors: every row once, like lengths together, as much for each."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from admg.config import EngineConfig
from pipeline.config import RunConfig
from pipeline.dealing import Dealing
from pipeline.keys import row_key
from pipeline.run import run
from pipeline.schema import PROMPT
from tests.pipeline.conftest import write_shards
from tests.pipeline.standin import StandIn


def table_of(lengths: list[int | None]) -> pa.Table:
    prompts = [None if n is None else "x" * n for n in lengths]
    return pa.table({"place": range(len(lengths)), PROMPT: pa.array(prompts, pa.string())})


def lengths_of(table: pa.Table) -> list[int]:
    return [len(prompt or "") for prompt in table[PROMPT].to_pylist()]


@given(
    lengths=st.lists(st.none() | st.integers(0, 9), max_size=600),
    actors=st.integers(1, 5),
    held=st.integers(1, 40),
)
def test_every_row_stays_once_and_whole(lengths: list[int | None], actors: int, held: int) -> None:
    table = table_of(lengths)
    dealt = Dealing(actors, held)(table)
    assert dealt.schema == table.schema
    assert dealt.sort_by("place").combine_chunks() == table.combine_chunks()


def test_one_actor_gets_the_longest_first_and_equal_lengths_as_they_come() -> None:
    dealt = Dealing(1, 3)(table_of([4, None, 9, 4, 7, 0]))
    assert dealt["place"].to_pylist() == [2, 4, 0, 3, 1, 5]


def test_a_window_s_rows_stay_before_the_next_ones() -> None:
    """Else the short rows of a large shard would be its last, and its rate say nothing."""
    dealt = Dealing(1, 4)(table_of([*range(256), *range(256)]))
    assert lengths_of(dealt) == [*range(255, -1, -1)] * 2


def test_a_window_is_no_smaller_than_what_all_actors_hold() -> None:
    dealt = lengths_of(Dealing(2, 200)(table_of([*range(500)])))
    assert dealt[:3] == [399, 397, 395] and dealt[200:203] == [398, 396, 394]
    assert dealt[400:] == [*range(499, 400, -2), *range(498, 399, -2)]


def test_actors_that_take_all_they_may_hold_get_as_much_each() -> None:
    """The first to have its model would else have all of the long rows."""
    dealt = lengths_of(Dealing(2, 4)(table_of([*range(1, 13)])))
    first, second, rest = dealt[:4], dealt[4:8], dealt[8:]
    assert (first, second) == ([12, 10, 8, 6], [11, 9, 7, 5])
    assert rest == [4, 2, 3, 1]


def test_a_run_begins_with_its_longest_prompts(ray_cluster: None, tmp_path: Path) -> None:
    prompts = ["x" * (1 + 7 * i % 24) for i in range(24)]
    shard = {"id": range(24), "prompt": prompts}
    write_shards(tmp_path / "in", [shard])
    factory = StandIn(max_num_seqs=4, log=str(tmp_path / "log"))
    config = RunConfig(
        (str(tmp_path / "in"),), str(tmp_path / "out"), "-", engine=EngineConfig(max_num_seqs=4)
    )
    assert run(config, engine_factory=factory).rows_ok == 24
    lengths = {row_key(i, prompt).hex(): len(prompt) for i, prompt in enumerate(prompts)}
    taken = [lengths[key] for key in factory.submitted()]
    assert sorted(taken) == [*range(1, 25)]
    # Calls may overtake one another, the first ones no later ones.
    assert min(taken[:4]) > max(taken[-4:]) and 24 in taken[:12]


def test_what_few_rows_there_are_is_dealt_as_well() -> None:
    assert lengths_of(Dealing(2, 100)(table_of([1, 2, 3, 4]))) == [4, 2, 3, 1]
    assert Dealing(2, 3)(table_of([])).num_rows == 0
