"""Checkpoints by URI: copied to each machine once, then used from its disk alone.

A model is a folder, or a URI of one: s3://, gs://, hdfs://, hf://organisation/name[@revision].
The driver looks at such a checkpoint once and hands on what it has found, so that all machines use
the very files whose identity the run is known by. A process that needs only the configuration and
the tokenizer copies only these, so that a head without a disk for weights can plan the run.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from pyarrow import fs

from pipeline.cache import cache_dir, made_once
from pipeline.errors import StorageError
from pipeline.file_systems import resolve
from pipeline.fingerprint import identity_of, model_identity
from pipeline.redaction import redacted
from pipeline.retry import PATIENCE, Patience, one_line
from pipeline.samples import Opener

WEIGHTS = ".safetensors"
_PICKLED = (".bin", ".pt", ".pth", ".ckpt")
# What a checkpoint is read from. Nothing else is copied: neither pickled weights nor code.
_KEPT = (WEIGHTS, ".json", ".jinja", ".model", ".txt")
_AT_ONCE = 4
_CHUNK = 16 * 2**20
_log = logging.getLogger(__name__)


def is_uri(model: str) -> bool:
    """Whether a model has to be copied to be used."""
    return "://" in model and not model.startswith("file:")


def local_folder(model: str) -> str:
    """The folder that `model` names, where it is a path or a file:// URI."""
    return resolve(model)[1] if model.startswith("file:") else model


@dataclass(frozen=True, slots=True)
class RemoteCheckpoint:
    """A checkpoint as it was found: its files' sizes by name, and its identity.

    Small to pickle: each process resolves the URI for itself.
    """

    uri: str = field(repr=False)  # may hold credentials
    files: Mapping[str, int]
    identity: Mapping[str, str]

    @classmethod
    def find(cls, uri: str, patience: Patience = PATIENCE) -> RemoteCheckpoint:
        """Look at a checkpoint, trying again for a while where the storage does not answer.

        Raises:
            ValueError: there is none, it cannot be reached, or its weights are pickled.
        """
        name = redacted(uri)
        if uri.startswith("hf:") and _hub_is_off():
            raise ValueError(
                f"model is {name!r}: HF_HUB_OFFLINE is set, so it must be a folder on this machine"
            )
        try:
            files = patience.run(f"listing {name}", lambda: _listed(uri))
            if "config.json" not in files:
                raise ValueError(f"model is {name!r}: it must be a folder with a config.json")
            if not any(n.endswith(WEIGHTS) for n in files):
                pickled = next((f" but {n}" for n in files if n.endswith(_PICKLED)), "")
                raise ValueError(
                    f"model is {name!r}: it must hold safetensors files, and holds none{pickled}"
                )
            openers = _openers(uri, files)
            identity = patience.run(f"reading {name}", lambda: identity_of(openers))
        except (OSError, StorageError) as error:
            reason = redacted(one_line(error))
            raise ValueError(f"model is {name!r}: it cannot be read: {reason}") from error
        return cls(uri, files, identity)

    @property
    def weights_bytes(self) -> int:
        """Bytes of the weights, as they are stored."""
        return sum(size for name, size in self.files.items() if name.endswith(WEIGHTS))

    def folder(self, *, weights: bool = True) -> Path:
        """The checkpoint's folder on this machine, copied by the first process that asks.

        Args:
            weights: whether these are needed as well.

        Raises:
            OSError: no room, or the cache or the storage fails.
            ValueError: the files are no longer those that were found.
        """
        whole = cache_dir() / "models" / self._folder_name()
        if not weights and not whole.is_dir():
            target = whole.with_name(f"{whole.name}-small")
            return made_once(target, lambda s: self._copy(s, False), _log.info, "model")
        return made_once(whole, lambda s: self._copy(s, True), _log.info, "model")

    def _folder_name(self) -> str:
        # By what it is: other files under the same URI are another model, and another folder.
        parts = [*sorted(self.files), *(f"{k} {v}" for k, v in sorted(self.identity.items()))]
        digest = hashlib.blake2b("\n".join(parts).encode(), digest_size=8).hexdigest()
        last = re.sub(r"[^\w.@-]+", "-", resolve(self.uri)[1].rstrip("/").rsplit("/", 1)[-1])
        return f"{last[:80]}-{digest}"

    def _copy(self, scratch: Path, weights: bool) -> Path:
        made = scratch / "model"
        made.mkdir()
        kept = [n for n in self.files if n.endswith(_KEPT) and (weights or not n.endswith(WEIGHTS))]
        needed, free = sum(self.files[n] for n in kept), shutil.disk_usage(scratch).free
        if needed > free:
            raise OSError(
                f"{scratch.parent} has {free / 1e9:.1f} GB free and the model needs "
                f"{needed / 1e9:.1f} GB: set ADMG_BATCH_CACHE to a folder with more room"
            )
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(lambda name: self._copy_file(name, made), kept))
        copied = model_identity(str(made))
        if any(copied[k] != v for k, v in self.identity.items() if weights or k != "weights"):
            raise ValueError(
                f"model is {redacted(self.uri)!r}: its files changed while they were copied"
            )
        return made

    def _copy_file(self, name: str, made: Path) -> None:
        filesystem, root = resolve(self.uri)
        source, target = f"{root.rstrip('/')}/{name}", made / name

        def copy() -> None:
            fs.copy_files(
                source,
                str(target),
                source_filesystem=filesystem,
                destination_filesystem=fs.LocalFileSystem(),
                chunk_size=_CHUNK,
            )

        PATIENCE.run(f"copying {source}", copy)
        if target.stat().st_size != self.files[name]:
            raise ValueError(f"{source} has another size than when it was found")
        with target.open("rb") as stream:  # the rename says complete, so it must outlive the power
            os.fsync(stream.fileno())


def remote_checkpoint(model: str, patience: Patience = PATIENCE) -> RemoteCheckpoint | None:
    """What a model by URI is; None for one that is a folder.

    Raises:
        ValueError: as `RemoteCheckpoint.find`.
    """
    return RemoteCheckpoint.find(model, patience) if is_uri(model) else None


def _listed(uri: str) -> dict[str, int]:
    filesystem, root = resolve(uri)
    found = filesystem.get_file_info(fs.FileSelector(root))
    return {f.base_name: f.size for f in sorted(found, key=lambda f: f.path) if f.is_file}


def _openers(uri: str, names: Iterable[str]) -> dict[str, Opener]:
    """A function for each file that opens it where it is, for reading at any place."""
    filesystem, root = resolve(uri)
    handler = getattr(filesystem, "handler", None)

    def opener(name: str) -> Opener:
        path = f"{root.rstrip('/')}/{name}"
        if isinstance(handler, fs.FSSpecHandler):
            # Without its cache, which would read megabytes around each sample.
            return lambda: handler.fs.open(path, "rb", cache_type="none")
        return lambda: filesystem.open_input_file(path)

    return {name: opener(name) for name in names}


def _hub_is_off() -> bool:
    from huggingface_hub.constants import HF_HUB_OFFLINE

    return bool(HF_HUB_OFFLINE)
