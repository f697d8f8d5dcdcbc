"""The end of a run: prove that all is there, put the files in order, say so in `_SUCCESS`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

from pipeline.commit_times import note_commits
from pipeline.compaction import Replacement, plan, write_anew
from pipeline.errors import PipelineError
from pipeline.job import Job
from pipeline.keys import KeySet
from pipeline.lease import Lease
from pipeline.ledger import Ledger, read_columns, read_ledger
from pipeline.manifest import MANIFEST, SUCCESS, known_sizes, read_manifest, write_manifest
from pipeline.names import SUFFIX
from pipeline.settle import best_rows
from pipeline.source import ScannedChunk
from pipeline.storage import Store
from pipeline.summary import COLUMNS, Summary
from pipeline.threads import over_threads

# Where writers cannot be shut out in one step, a late one may commit while files are put in order.
_ROUNDS = 5


def finish(
    job: Job, scanned: Sequence[ScannedChunk], lease: Lease, facts: dict[str, Any]
) -> Summary:
    """Compare the rows of input and output, put the files in order, write the manifest.

    `facts` is what the run says about itself in the manifest; `rows_not_in_input` and the time of
    the end are added to them. Such rows stay: yesterday's results are no mistake of today's input.

    Raises:
        PipelineError: input rows are missing in the output.
        Fenced: another run has taken the output over.
    """
    job = replace(job, store=lease.seal())
    wanted = KeySet.of(s.keys for s in scanned)
    sizes = known_sizes(job.store)
    for _ in range(_ROUNDS):
        ledger = read_ledger(job.store, job.config.id_column).sized(sizes)
        _check_complete(job, scanned, ledger)
        best = best_rows(ledger, wanted)
        todo = plan(ledger, best, job.schema, job.config.max_rows_per_file)
        nothing_new = facts["rows_decoded"] == 0 and not facts["bad_shards"]
        facts["rows_not_in_input"] = int(best.sum()) - len(wanted)
        if not todo and nothing_new and _is_finished(job.store, ledger):
            return _summary(job.store, ledger)  # the manifest of the run that did it all stays
        if todo:
            job.store.delete(SUCCESS)
            note_commits(job.store, todo.names)
        ledger = _put_in_order(job, ledger, best, todo, sizes)
        summary = _summary(job.store, ledger)
        _check_complete(job, scanned, ledger)
        facts["ended"] = datetime.now(UTC).isoformat(timespec="seconds")
        lease.check()
        write_manifest(job.store, job.fingerprint, ledger, summary, facts)
        names = {file.name for file in ledger.files}
        for name in job.store.names(SUFFIX):
            if name in todo.names:
                job.store.delete(name)
        if set(job.store.names(SUFFIX)) == names:
            job.store.write(SUCCESS, b"")
            return summary
    raise PipelineError(
        f"files keep appearing in output {job.config.output!r}: stop what else writes there, then "
        "run the same command again"
    )


def _is_finished(store: Store, ledger: Ledger) -> bool:
    """Whether an earlier run has said so, of just the files that are there."""
    if not (store.exists(SUCCESS) and store.exists(MANIFEST)):
        return False
    said = {file["name"]: file["rows"] for file in read_manifest(store.uri)["files"]}
    return said == {file.name: file.rows for file in ledger.files}


def _check_complete(job: Job, scanned: Sequence[ScannedChunk], ledger: Ledger) -> None:
    """Compare sets of keys, never counts: a lost row and a double one make the same count."""
    committed = ledger.keys()
    missing = sum(int(np.count_nonzero(~committed.contains(s.keys))) for s in scanned)
    if missing:
        raise PipelineError(
            f"{missing} rows of the input are not in output {job.config.output!r}: run the same "
            "command again to decode them"
        )


def _put_in_order(
    job: Job, ledger: Ledger, best: Any, todo: Replacement, sizes: dict[str, int]
) -> Ledger:
    """Write what replaces old files; the ledger without those, every id in it once.

    The new files' sizes are added to `sizes`.

    Raises:
        PipelineError: the new files do not hold what they should.
    """
    most_rows = job.config.max_rows_per_file
    new = write_anew(job.store, job.fingerprint, ledger, best, todo, job.schema, most_rows)
    if not todo:
        return ledger
    sizes |= new
    stay = [file.name for file in ledger.files if file.name not in todo.names]
    after = read_ledger(job.store, job.config.id_column, [*stay, *new]).sized(sizes)
    if after.rows != int(best.sum()) or len(after.ids()) != after.rows:
        raise PipelineError(f"files of output {job.config.output!r} changed while they were merged")
    return after


def _summary(store: Store, ledger: Ledger) -> Summary:
    names = [file.name for file in ledger.files]
    return Summary.total(over_threads(lambda n: Summary.of(read_columns(store, n, COLUMNS)), names))
