"""The systems that can be timed, and their names: `admg:drop=8,tokens=4` is a variant of `admg`.

Names are parsed and checked here without importing any engine; a worker gets the parsed value.
"""

from __future__ import annotations

import difflib
import subprocess
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from admg.config import DraftConfig, Drafter
from admg.draft_rules import DropRule, WindowRule
from jobs.params import plan_config

PLAIN = "plain"
_ORDERS = ("given", "length")
_PEER_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of system: its backend class (`module:class`), its options, where it can run."""

    backend: str
    about: str
    options: Mapping[str, Callable[[str], Any]] = field(default_factory=dict)
    only_batch_1: bool = False
    own_python: bool = False


@dataclass(frozen=True, slots=True)
class System:
    """A system as it was named, its kind and its options by name."""

    name: str
    kind: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def backend(self) -> str:
        """`module:class` of the code that runs it."""
        return KINDS[self.kind].backend

    @property
    def own_python(self) -> bool:
        """Whether it lives in a virtual environment of its own."""
        return KINDS[self.kind].own_python

    def runs(self, batch: int) -> bool:
        """Whether it can decode that many sequences at once."""
        return batch == 1 or not KINDS[self.kind].only_batch_1


def _order(value: str) -> str:
    if value not in _ORDERS:
        raise ValueError(value)
    return value


def _on(value: str) -> bool:
    if value not in ("0", "1"):
        raise ValueError(value)
    return value == "1"


_DROP: dict[str, Callable[[str], Any]] = {"drop": int, "quantile": float, "threshold": float}
_DRAFT: dict[str, Callable[[str], Any]] = {
    "plan": str,
    "tokens": int,
    "exit": float,
    "similarity": str,
    "verification": str,
    "fill": _on,
    "remake": int,
    "refresh": int,
    "decay": float,
    "weights": str,
    "limit": lambda value: value if value == "auto" else float(value),
    "window": int,
    "tail": int,
}
_LOOKUP: dict[str, Callable[[str], Any]] = {"tokens": int, "verification": str, "store": int}
_OURS = "jobs.bench.ours:Ours"
_PEER = "jobs.bench.transformers_peer"

KINDS: dict[str, Kind] = {
    PLAIN: Kind(_OURS, "this engine without drafting; always there, as the baseline"),
    "admg": Kind(_OURS, "this engine drafting with dropped attention layers", _DROP | _DRAFT),
    "ngram": Kind(_OURS, "this engine looking its last tokens up in the sequence", _LOOKUP),
    "auto": Kind(_OURS, "this engine choosing every round's draft", _DROP | _DRAFT | _LOOKUP),
    "transformers": Kind(f"{_PEER}:Padded", "generate() on padded batches", {"order": _order}),
    "transformers-continuous": Kind(f"{_PEER}:Continuous", "generate_batch()"),
    "transformers-lookup": Kind(
        f"{_PEER}:Lookup", "generate() with prompt lookup, batch 1", {"tokens": int}, True
    ),
    "vllm": Kind("jobs.bench.vllm_peer:Vllm", "vLLM in its own --peer-python", own_python=True),
}


def parse_system(name: str) -> System:
    """The system of a name.

    Raises:
        ValueError: one sentence that says which kinds, options or values there are.
    """
    kind, _, rest = name.partition(":")
    if kind not in KINDS:
        near = difflib.get_close_matches(kind, KINDS, 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ValueError(f"--system is {kind!r}: it must be one of {', '.join(KINDS)}{hint}")
    known = KINDS[kind].options
    options: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        key, _, value = part.partition("=")
        if key not in known:
            right = ", ".join(f"{k}=..." for k in known) or "none"
            raise ValueError(f"--system {name}: {key!r} is not an option of {kind} ({right})")
        try:
            options[key] = known[key](value)
        except ValueError as error:
            raise ValueError(f"--system {name}: {part} is not a value that {key} takes") from error
    system = System(name, kind, options)
    try:
        draft_config(system)
    except ValueError as error:
        raise ValueError(f"--system {name}: {error}") from error
    return system


def parse_systems(names: Iterable[str]) -> tuple[System, ...]:
    """Systems by name, each once, plain decoding first."""
    return tuple(parse_system(name) for name in dict.fromkeys([PLAIN, *names]))


def draft_config(system: System) -> DraftConfig:
    """How our engine drafts as this system (plain for systems that are not ours)."""
    if system.kind not in get_args(Drafter):
        return DraftConfig(drafter="none")
    names = {"drop": "count", "tokens": "draft_tokens", "exit": "exit_threshold"}
    names |= {
        "fill": "hole_filling",
        "remake": "remake_after",
        "refresh": "remake_every",
        "decay": "similarity_decay",
        "weights": "draft_weights",
        "store": "lookup_store_tokens",
        "tail": "lookup_tail",
    }
    fields = {names.get(key, key): value for key, value in system.options.items()}
    level = {key: fields.pop(key) for key in ("count", "quantile", "threshold") if key in fields}
    if level:
        fields["drop"] = DropRule(**level)
    windows = {key: fields.pop(key) for key in ("limit", "window") if key in fields}
    if windows:
        if "limit" not in windows:
            raise ValueError("window goes with limit, the share of the heads that it limits")
        fields["windows"] = WindowRule(share=windows.pop("limit"), **windows)
    # A run repeats its prompts: what it said the last time would make every lookup right.
    fields.setdefault("lookup_store_tokens", 0)
    plan = fields.pop("plan", None)
    base = DraftConfig() if plan is None else plan_config(plan)
    if base.exit.carry:
        raise ValueError(
            "exit_carry is true in its plan: it must be false here, or the repeats of a run would "
            "differ, each beginning where the one before has left the threshold"
        )
    return replace(base, drafter=system.kind, **fields)


def check_peer(python: str | None) -> str:
    """The interpreter of the virtual environment that holds vLLM.

    Raises:
        ValueError: it was not named, does not run, or has no vLLM of a known version.
    """
    if python is None:
        raise ValueError(
            "--system vllm needs --peer-python: the python of a virtual environment with vllm in it"
        )
    if not Path(python).is_file():
        raise ValueError(f"--peer-python is {python}: it must be the path of a python program")
    # Found without importing it: that takes half a minute, and the worker does it anyway.
    probe = (
        "import importlib.metadata as m, importlib.util as u\n"
        "names = m.packages_distributions().get('vllm', []) if u.find_spec('vllm') else []\n"
        "print(m.version(names[0]) if names else '')"
    )
    try:
        done = subprocess.run(
            [python, "-c", probe], capture_output=True, text=True, timeout=_PEER_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ValueError(f"--peer-python is {python}: it does not run ({error})") from error
    version = done.stdout.strip()
    if done.returncode or not version:
        raise ValueError(f"--peer-python is {python}: vllm is not installed there")
    parts = [int(p) for p in version.split("+")[0].split(".")[:2] if p.isdigit()]
    if parts < [0, 10]:
        raise ValueError(
            f"--peer-python is {python}: its vllm is {version}, 0.10 or later is needed"
        )
    return python
