"""The fingerprint of a job: every setting that a completion or the output's columns depend on.

Options that only change speed are left out, so they may differ between the runs that fill one
output. The model is known by its files and not by its path, which may move.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from pipeline.config import RunConfig
from pipeline.samples import Opener, Span, read_spans, spans_of

# The first kind that is there: a checkpoint's other files of weights are never read.
_WEIGHTS = ("*.safetensors", "*.gguf", "*.bin")
_TOKENIZER = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "tekken.json",
    "chat_template.jinja",
    "chat_template.json",
)
# Of a bucket, each span of a file is a request: so many at once, those of a task one after another.
_AT_ONCE, _SPANS_EACH = 16, 32
# To be raised whenever the same settings begin to give another text, another row key or another
# meaning of a column: noise, sampling, verification, templates, tokenising.
_SEMANTICS = 1


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Settings by name, and a digest of them."""

    fields: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """128 bits in hex; the same settings give the same digest on every machine."""
        return hashlib.blake2b(self.to_json().encode(), digest_size=16).hexdigest()

    def to_json(self) -> str:
        """Canonical JSON of the fields."""
        return json.dumps(dict(self.fields), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes) -> Fingerprint:
        """What `to_json` wrote."""
        return cls(json.loads(text))

    def differences(self, old: Fingerprint) -> list[str]:
        """What differs from `old`, each as "field was X and is now Y"."""
        # Through JSON, so that a tuple here equals the list that was read back.
        now, then = json.loads(self.to_json()), json.loads(old.to_json())
        return [
            f"{name} was {then.get(name)!r} and is now {now.get(name)!r}"
            for name in sorted(now.keys() | then.keys())
            if now.get(name) != then.get(name)
        ]


def fingerprint(
    config: RunConfig, model: Mapping[str, str], date: str | None = None
) -> Fingerprint:
    """The fingerprint of a run.

    Args:
        config: the run's.
        model: the model's identity (see `model_identity`).
        date: the day that its chat template is told, if it asks for it.
    """
    draft = config.engine.draft
    fields: dict[str, Any] = {f"model.{name}": value for name, value in model.items()}
    fields |= {f"prompt.{name}": value for name, value in asdict(config.prompt).items()}
    fields |= {f"sampling.{name}": value for name, value in asdict(config.sampling).items()}
    fields |= {
        "id_column": config.id_column,
        "keep": config.keep,
        "dtype": config.dtype,
        "engine.max_model_len": config.engine.max_model_len,
        "engine.verification": draft.verification,
        "engine.semantics": _SEMANTICS,
    }
    if date is not None:
        fields["prompt.date"] = date
    if draft.verification != "shared":
        # Only shared noise makes the completion independent of what was drafted.
        drafting = asdict(draft)
        del drafting["verification"]
        fields |= {f"draft.{name}": value for name, value in drafting.items()}
    return Fingerprint(fields)


def _digest(parts: list[bytes]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(b"%d:" % len(part) + part)
    return digest.hexdigest()


def model_identity(path: str) -> dict[str, str]:
    """What a checkpoint folder is, cheaply: see `identity_of`.

    Raises:
        ValueError: the path is not a folder.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ValueError(f"model is {path!r}: it must be a folder with a checkpoint")
    return identity_of({f.name: partial(f.open, "rb") for f in folder.iterdir() if f.is_file()})


def identity_of(files: Mapping[str, Opener]) -> dict[str, str]:
    """What a checkpoint is: its small files' content, and samples of its weights.

    Weights are known by their files' names and sizes and by a little of each tensor (see
    `samples`), so that a model tuned from another does not pass for it, whatever part of it was
    tuned. Where the files lie does not count: a checkpoint has one identity in a bucket and on a
    disk.

    Args:
        files: for each name a function that opens the file for reading.
    """

    def content(names: tuple[str, ...]) -> str:
        parts = []
        for name in names:
            if name in files:
                with files[name]() as stream:
                    parts += [name.encode(), bytes(stream.read())]
        return _digest(parts)

    kinds = ([name for name in sorted(files) if fnmatch(name, kind)] for kind in _WEIGHTS)
    weights = next((names for names in kinds if names), [])
    return {
        "config": content(("config.json",)),
        "generation_config": content(("generation_config.json",)),
        "tokenizer": content(_TOKENIZER),
        "weights": _digest(_sampled({name: files[name] for name in weights})),
    }


def _sampled(files: Mapping[str, Opener]) -> list[bytes]:
    """Names, sizes and samples of files of weights, all in the order of the files."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        laid_out = list(pool.map(spans_of, files.values()))
        tasks: list[tuple[Opener, list[Span]]] = []
        parts = []
        for (name, opener), (size, spans) in zip(files.items(), laid_out, strict=True):
            parts.append(b"%s %d" % (name.encode(), size))
            groups = range(0, len(spans), _SPANS_EACH)
            tasks += [(opener, spans[i : i + _SPANS_EACH]) for i in groups]
        samples = list(pool.map(lambda task: read_spans(*task), tasks))
    return [*parts, *chain.from_iterable(samples)]
