"""URIs as people write them, in the form that pyarrow reads."""

from __future__ import annotations

import re
from urllib.parse import quote

_SCHEMES = ("file", "s3", "gs", "gcs", "hdfs", "viewfs", "abfs", "abfss")
_PARTS = re.compile(
    r"(?P<place>(?P<scheme>[a-z][\w+.-]*):(//[^/?#]*)?)"
    r"(?P<path>.*?)"
    r"(\?(?P<query>[A-Za-z_]\w*=[^&?]*(&[A-Za-z_]\w*=[^&?]*)*))?",
    re.DOTALL,
)
_UNRESERVED = "/%:@!$&'()*+,;=~"


def arrow_uri(uri: str, one_put: bool = False) -> str:
    """The URI with what only people write in a path (spaces, `?`, `[`, letters) in percent signs.

    A question mark begins the query only where nothing but `name=value` pairs follow.

    Args:
        one_put: whether small files on S3 are to be written by one request.
    """
    parts = _PARTS.fullmatch(uri)
    if parts is None or parts["scheme"] not in _SCHEMES:
        return uri
    path = re.sub(r"%(?![0-9A-Fa-f]{2})", "%25", parts["path"])
    query = [parts["query"]] if parts["query"] else []
    if one_put and parts["scheme"] == "s3" and "allow_delayed_open=" not in (parts["query"] or ""):
        query.append("allow_delayed_open=true")
    return parts["place"] + quote(path, _UNRESERVED) + ("?" + "&".join(query) if query else "")
