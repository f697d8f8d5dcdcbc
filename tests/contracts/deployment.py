"""Reading what lies in deploy/, and holding it against schemas.

Kubernetes would drop a field that it does not know without a word, so here an unknown field is a
mistake.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
SCHEMAS = ROOT.parent / "shared" / "data" / "kuberay"
DAY = "2026-11-20"


def manifests(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


def rayjob() -> dict[str, Any]:
    return dict(yaml.safe_load((DEPLOY / "rayjob.yaml").read_text().replace("yyyy-mm-dd", DAY)))


def strict(schema: Any) -> Any:
    """A schema in which every object with named properties has no others."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict):
        made.setdefault("additionalProperties", False)
    return made


def kuberay(kind: str) -> jsonschema.Draft202012Validator:
    file = SCHEMAS / f"{kind.lower()}_v1.schema.json"
    if not file.is_file():
        pytest.skip(f"needs KubeRay's schema of {kind} at ../shared/data/kuberay")
    return jsonschema.Draft202012Validator(strict(json.loads(file.read_text())))


def mistakes(validator: jsonschema.Draft202012Validator, document: Any) -> list[str]:
    found = validator.iter_errors(document)
    return [f"{'/'.join(map(str, e.absolute_path))}: {e.message[:200]}" for e in found]


def containers(document: Any) -> Iterator[dict[str, Any]]:
    """Every container of a manifest, wherever it stands."""
    if isinstance(document, dict):
        for key, value in document.items():
            if key in ("containers", "initContainers"):
                yield from value
            else:
                yield from containers(value)
    elif isinstance(document, list):
        for part in document:
            yield from containers(part)


def dockerfile() -> str:
    return (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
