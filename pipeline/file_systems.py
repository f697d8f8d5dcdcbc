"""Which file system a path or URI means: pyarrow's own, or one of fsspec's."""

from __future__ import annotations

from functools import lru_cache

import pyarrow as pa
from pyarrow import fs

from pipeline.foreign import os_errors, told_in_os_errors
from pipeline.home import local_path
from pipeline.redaction import redacted
from pipeline.uris import arrow_uri


def resolve(uri: str, one_put: bool = False) -> tuple[fs.FileSystem, str]:
    """The file system of a path or URI, and the path in it.

    Args:
        uri: the path or URI.
        one_put: whether the file system is to write small files, and only these.

    Raises:
        ValueError: a URI that neither pyarrow nor fsspec knows, or the home of nobody.
    """
    if "://" in uri or uri.startswith("file:"):
        return _resolve_uri(uri, one_put)
    return fs.LocalFileSystem(), str(local_path(uri).absolute())


@lru_cache(maxsize=64)  # some file systems log in
def _resolve_uri(uri: str, one_put: bool) -> tuple[fs.FileSystem, str]:
    try:
        with os_errors():
            system, path = fs.FileSystem.from_uri(arrow_uri(uri, one_put))
    except pa.ArrowInvalid as known_to_arrow:
        try:
            import fsspec

            with os_errors():
                foreign, path = fsspec.core.url_to_fs(uri)
        except (ImportError, ValueError):
            raise ValueError(redacted(f"{uri!r} is no usable path: {known_to_arrow}")) from None
        system = fs.PyFileSystem(fs.FSSpecHandler(foreign))
    return told_in_os_errors(system), path
