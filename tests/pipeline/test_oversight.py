"""What a run takes away from Ray Data while it works."""

from __future__ import annotations

import inspect
from types import SimpleNamespace

from ray.data._internal.execution.operators.map_operator import MapOperator

from pipeline.oversight import _Callback


def test_no_statistics_are_kept_of_blocks_that_are_through() -> None:
    """Else the driver's memory grows by some kilobytes for each of them."""
    operators = [SimpleNamespace(_output_blocks_stats=[1, 2]), SimpleNamespace()]
    executor = SimpleNamespace(
        _data_context=SimpleNamespace(get_config=lambda _: None), _topology=operators
    )
    _Callback().on_execution_step(executor)
    assert operators[0]._output_blocks_stats == []


def test_ray_data_keeps_them_where_they_are_taken_away() -> None:
    assert "self._output_blocks_stats.extend(" in inspect.getsource(MapOperator)
