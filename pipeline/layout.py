"""How a run is laid out on a cluster: actors, what each of them gets, and how large blocks are."""

from __future__ import annotations

from dataclasses import dataclass

from admg.checkpoint import load_dtype
from admg.low_bit import check_low_bit
from pipeline.blocks import calls_in_flight, rows_per_block, rows_per_call
from pipeline.cluster import Cluster
from pipeline.config import RunConfig

# What runs beside Decode: reading with repartitioning takes one CPU (Ray fuses the two only with
# its own default), tokenizers and writing share another.
LIGHT = 0.25
_CPUS_BESIDE_ACTORS = 2
_ACTORS_PER_TOKENIZER = 4
_ACTORS_PER_WRITER = 4
_STALL_SECONDS = 1800.0


@dataclass(frozen=True, slots=True)
class Layout:
    """Actors with their CPUs and GPUs, and how rows go through them.

    `rows_per_call` go to an actor at once, which works on up to `in_flight` such calls;
    `rows_per_block` are committed together, whichever actors decoded them.
    `needs` is what the cluster had of all that when it was made: with less it cannot go on.
    """

    actors: int
    cpus: float
    gpus: float
    rows_per_block: int
    rows_per_call: int
    in_flight: int
    needs: dict[str, float]

    @property
    def tokenizers(self) -> int:
        """Actors that tokenise."""
        return -(-self.actors // _ACTORS_PER_TOKENIZER)

    @property
    def writers(self) -> int:
        """Processes that commit blocks.

        Blocks that end together are written one after another: each further process would take
        seconds of the engine's CPUs to start, and a block takes hundredths of one.
        """
        return -(-self.actors // _ACTORS_PER_WRITER)

    @property
    def held(self) -> int:
        """Rows that an actor may have at once."""
        return self.in_flight * self.rows_per_call

    @property
    def gathers(self) -> bool:
        """Whether a block is committed that came from several calls."""
        return self.rows_per_call < self.rows_per_block


def layout_of(
    config: RunConfig,
    rows: int,
    cluster: Cluster,
    actors: int,
    shrunk: bool = False,
    measured: float | None = None,
    tokens: int | None = None,
) -> Layout:
    """The layout of so many rows and actors; on a cluster that has `shrunk`, for what is left.

    `measured` and `tokens` are as for `rows_per_block`.

    Raises:
        ValueError: actors that the machine started here cannot hold (a cluster may still grow), or
            draft weights that there are no kernels for, on GPUs or on CPUs.
    """
    gpus = gpus_per_actor(config, cluster, actors)
    if config.engine.draft.low_bit is not None:
        device = "cuda" if gpus else "cpu"
        check_low_bit(config.engine.draft.low_bit, device, load_dtype(config.dtype, device))
    if shrunk and gpus:
        actors = max(1, min(actors, int(cluster.gpus // gpus)))
    # Where actors would hold every CPU, reading and writing could never start.
    roomy = cluster.cpus >= actors + _CPUS_BESIDE_ACTORS
    cpus = 1.0 if roomy and not gpus else 0.0
    block = rows_per_block(config, rows, gpus, measured, tokens, actors)
    call = rows_per_call(config, block)
    calls = calls_in_flight(config, call, rows // actors)
    needs = {
        "CPU": min(actors * cpus + _CPUS_BESIDE_ACTORS, cluster.cpus),
        "GPU": min(actors * gpus, cluster.gpus),
    }
    return Layout(actors, cpus, gpus, block, call, calls, needs)


def gpus_per_actor(config: RunConfig, cluster: Cluster, actors: int) -> float:
    """GPUs for each actor: as configured, or one where there are any.

    Raises:
        ValueError: more than the local machine has. A cluster may still grow.
    """
    gpus = config.gpus_per_actor
    if gpus is None:
        gpus = 1.0 if cluster.gpus else 0.0
    if cluster.local and gpus * actors > cluster.gpus:
        raise ValueError(
            f"actors is {actors} with {gpus:g} GPUs each: it must fit the "
            f"{cluster.gpus:g} GPUs of this machine"
        )
    return gpus


def patience(config: RunConfig, longest_row: float) -> float:
    """Seconds without any movement after which a run ends: no row may take that long."""
    return config.stall_seconds or max(_STALL_SECONDS, 2 * longest_row)
