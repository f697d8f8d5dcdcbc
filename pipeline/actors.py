"""How many actors a run has where it is not told: several with a core each, or one with all."""

from __future__ import annotations

from pipeline.cluster import Cluster
from pipeline.config import RunConfig
from pipeline.factory import EngineFactory, ModelFactory
from pipeline.machine import usable_cores, usable_memory

# Of checkpoints up to this size an operation takes so little that its threads, which wait for each
# other at the end of each, have no use for a good part of a core.
_SMALL_BYTES = 1e9
# Two have been measured. Beyond a few, the copies come to want the same memory bandwidth.
_MOST = 4
_SHARE_OF_MEMORY = 0.75


def actors_for(
    config: RunConfig, factory: EngineFactory, rows: int, cluster: Cluster | None = None
) -> int:
    """As configured; else 1, but for a small model on a machine of CPUs that is the whole cluster.

    There a core decodes faster for itself than together with the others: two engines of one thread
    took 0.86 of the time of one of two (`deploy/records/pipeline_overhead.md`). Each gets a full
    batch at least, for another copy of the model takes seconds to load, and all of them fit the
    memory. Who says how many threads an actor has, but not how many actors, means one.

    Args:
        config: the run's.
        factory: what the engines are built by.
        rows: that are to be decoded.
        cluster: what there is to run on; None: this machine, if it turns out to have no GPUs.
    """
    if config.actors is not None:
        return config.actors
    elsewhere = cluster is not None and (not cluster.local or cluster.gpus > 0)
    if elsewhere or config.threads is not None or not isinstance(factory, ModelFactory):
        return 1
    most = min(_MOST, rows // config.engine.max_num_seqs)
    if most < 2 or factory.weights_bytes() > _SMALL_BYTES:
        return 1
    room = int(_SHARE_OF_MEMORY * usable_memory() / factory.memory_bytes())
    return _sharing(usable_cores(), max(1, min(most, room)))


def _sharing(cores: int, most: int) -> int:
    """The number of actors, up to `most`, that leaves the fewest cores idle: the largest such."""
    return max(range(1, most + 1), key=lambda n: (n * (cores // n), n))
