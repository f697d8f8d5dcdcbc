"""Checkpoints by URI: copied to each machine once, then used from its disk alone.

A model is a folder, or a URI of one: s3://, gs://, hdfs://, hf://organisation/name[@revision].
The driver lists such a checkpoint once and hands the listing on, so that all machines use the very
files whose identity the run is known by. A process that needs only the configuration and the
tokenizer copies only these, so that a head without a disk for weights can plan the run.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from pyarrow import fs

from pipeline.cache import cache_dir, made_once
from pipeline.errors import StorageError
from pipeline.redaction import redacted
from pipeline.retry import PATIENCE, Patience, one_line
from pipeline.storage import resolve

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
class RemoteFile:
    """One file of a listing; `changed` in nanoseconds, 0 where the storage does not say."""

    name: str
    size: int
    changed: int


@dataclass(frozen=True, slots=True)
class RemoteCheckpoint:
    """A checkpoint as it was listed. Small to pickle: each process resolves the URI for itself."""

    uri: str = field(repr=False)  # may hold credentials
    files: tuple[RemoteFile, ...]

    @classmethod
    def find(cls, uri: str, patience: Patience = PATIENCE) -> RemoteCheckpoint:
        """List a checkpoint, trying again for a while where the storage does not answer.

        Raises:
            ValueError: there is none, it cannot be reached, or its weights are pickled.
        """
        name = redacted(uri)
        if uri.startswith("hf:") and _hub_is_off():
            raise ValueError(
                f"model is {name!r}: HF_HUB_OFFLINE is set, so it must be a folder on this machine"
            )
        try:
            files = _listed(uri, patience)
        except (OSError, StorageError) as error:
            reason = redacted(one_line(error))
            raise ValueError(f"model is {name!r}: it cannot be listed: {reason}") from error
        names = [file.name for file in files]
        if "config.json" not in names:
            raise ValueError(f"model is {name!r}: it must be a folder with a config.json")
        if not any(n.endswith(WEIGHTS) for n in names):
            pickled = next((f" but {n}" for n in names if n.endswith(_PICKLED)), "")
            raise ValueError(
                f"model is {name!r}: it must hold safetensors files, and holds none{pickled}"
            )
        return cls(uri, files)

    def openers(self) -> dict[str, Callable[[], IO[Any]]]:
        """A function for each file that opens it where it is, for reading at any place."""
        filesystem, root = resolve(self.uri)

        def opener(name: str) -> Callable[[], IO[Any]]:
            path = f"{root.rstrip('/')}/{name}"
            return lambda: filesystem.open_input_file(path)

        return {file.name: opener(file.name) for file in self.files}

    def folder(self, *, weights: bool = True) -> Path:
        """The checkpoint's folder on this machine, copied by the first process that asks.

        Args:
            weights: whether these are needed as well.

        Raises:
            OSError: no room, or the cache or the storage fails.
            ValueError: the files are no longer those that were listed.
        """
        whole = cache_dir() / "models" / self._folder_name()
        if not weights and not whole.is_dir():
            target = whole.with_name(f"{whole.name}-small")
            return made_once(target, lambda s: self._copy(s, self._small()), _log.info, "model")
        return made_once(whole, lambda s: self._copy(s, self._kept()), _log.info, "model")

    def _folder_name(self) -> str:
        # The listing as well: other files under the same URI are another model.
        parts = [self.uri, *(f"{f.name} {f.size} {f.changed}" for f in self.files)]
        digest = hashlib.blake2b("\n".join(parts).encode(), digest_size=8).hexdigest()
        last = re.sub(r"[^\w.@-]+", "-", resolve(self.uri)[1].rstrip("/").rsplit("/", 1)[-1])
        return f"{last[:80]}-{digest}"

    def _kept(self) -> list[RemoteFile]:
        return [f for f in self.files if f.name.endswith(_KEPT)]

    def _small(self) -> list[RemoteFile]:
        return [f for f in self._kept() if not f.name.endswith(WEIGHTS)]

    def _copy(self, scratch: Path, files: list[RemoteFile]) -> Path:
        made = scratch / "model"
        made.mkdir()
        needed, free = sum(f.size for f in files), shutil.disk_usage(scratch).free
        if needed > free:
            raise OSError(
                f"{scratch.parent} has {free / 1e9:.1f} GB free and the model needs "
                f"{needed / 1e9:.1f} GB: set ADMG_BATCH_CACHE to a folder with more room"
            )
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for _ in pool.map(lambda file: self._copy_file(file, made), files):
                pass
        if _listed(self.uri) != self.files:
            raise ValueError(
                f"model is {redacted(self.uri)!r}: its files changed while they were copied"
            )
        return made

    def _copy_file(self, file: RemoteFile, made: Path) -> None:
        filesystem, root = resolve(self.uri)
        source, target = f"{root.rstrip('/')}/{file.name}", made / file.name

        def copy() -> None:
            fs.copy_files(
                source,
                str(target),
                source_filesystem=filesystem,
                destination_filesystem=fs.LocalFileSystem(),
                chunk_size=_CHUNK,
            )

        PATIENCE.run(f"copying {source}", copy)
        if target.stat().st_size != file.size:
            raise ValueError(f"{source} has another size than when it was listed")
        with target.open("rb") as stream:  # the rename says complete, so it must outlive the power
            os.fsync(stream.fileno())


def remote_checkpoint(model: str, patience: Patience = PATIENCE) -> RemoteCheckpoint | None:
    """The listing of a model by URI; None for one that is a folder.

    Raises:
        ValueError: as `RemoteCheckpoint.find`.
    """
    return RemoteCheckpoint.find(model, patience) if is_uri(model) else None


def _listed(uri: str, patience: Patience = PATIENCE) -> tuple[RemoteFile, ...]:
    filesystem, root = resolve(uri)
    found = patience.run(f"listing {root}", lambda: filesystem.get_file_info(fs.FileSelector(root)))
    files = [RemoteFile(f.base_name, f.size, f.mtime_ns or 0) for f in found if f.is_file]
    return tuple(sorted(files, key=lambda file: file.name))


def _hub_is_off() -> bool:
    from huggingface_hub.constants import HF_HUB_OFFLINE

    return bool(HF_HUB_OFFLINE)
