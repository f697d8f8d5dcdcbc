"""What a run leaves beside its rows, for the next one and for reports."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config import RunConfig
from pipeline.fingerprint import Fingerprint
from pipeline.manifest import RUN, depended_on_order, write_run
from pipeline.storage import Store


@pytest.mark.parametrize("order", [False, True])
def test_whether_statistics_depend_on_the_order_is_kept(tmp_path: Path, order: bool) -> None:
    store = Store(str(tmp_path))
    store.prepare()
    assert not depended_on_order(store), "there is no row yet"
    write_run(store, RunConfig(("in",), str(tmp_path), "m"), Fingerprint({}), "now", order=order)
    assert depended_on_order(store) == order
    for content in (b"{", b"[]", b"7"):
        store.write(RUN, content)
        assert depended_on_order(store), "nobody knows any more"
