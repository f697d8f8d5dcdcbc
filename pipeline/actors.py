"""How many actors a run has where it is not told: several with a core each, or one with all."""

from __future__ import annotations

import os

from pipeline.cluster import Cluster
from pipeline.config import RunConfig
from pipeline.cores import usable_cores
from pipeline.factory import EngineFactory, ModelFactory

# Of checkpoints up to this size an operation takes so little that its threads, which wait for each
# other at the end of each, have no use for a good part of a core.
_SMALL_BYTES = 1e9
# More than this many copies of a model have not been measured.
_MOST = 4
# A model takes this many times its checkpoint while it is loaded, as float32 from two bytes each.
_LOADING = 3
_SHARE_OF_MEMORY = 0.5


def most_actors(config: RunConfig) -> int:
    """What `actors_for` comes to at most."""
    return config.actors or min(_MOST, usable_cores())


def actors_for(config: RunConfig, factory: EngineFactory, rows: int, cluster: Cluster) -> int:
    """As configured; else 1, but for a small model on a machine of CPUs that is the whole cluster.

    There a core decodes faster for itself than together with the others: two engines of one thread
    took 0.85 of the time of one of two (`deploy/records/pipeline_overhead.md`). Each gets a full
    batch at least, for another copy of the model takes seconds to load.

    Args:
        config: the run's.
        factory: what the engines are built by.
        rows: that are to be decoded.
        cluster: what there is to run on.
    """
    if config.actors is not None:
        return config.actors
    if not cluster.local or cluster.gpus or not isinstance(factory, ModelFactory):
        return 1
    size = factory.weights_bytes()
    if size > _SMALL_BYTES:
        return 1
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    most = min(
        _MOST,
        rows // config.engine.max_num_seqs,
        int(_SHARE_OF_MEMORY * free / max(_LOADING * size, 1)),
    )
    return _sharing(usable_cores(), config.threads, max(1, most))


def _sharing(cores: int, threads: int | None, most: int) -> int:
    """The number of actors, up to `most`, that leaves the fewest cores idle: the largest such."""
    if threads is not None:
        return max(1, min(most, cores // threads))
    return max(range(1, most + 1), key=lambda n: (n * (cores // n), n))
