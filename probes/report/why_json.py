# SPDX-License-Identifier: Apache-2.0
"""Converts an explanation to JSON. Pure.

The objects of the VM and of its processes are those of ``hvprobe snapshot``, with what only an
explanation has beside them. docs/why.schema.json describes the result.
"""

from collections.abc import Iterable

from probes.report.model import process_json, vmi_json
from probes.report.why import WHY_SCHEMA, Explanation, ProcessExplanation
from probes.report.why_evidence import Piece
from probes.report.why_words import headline, sections


def why_json(explanation: Explanation) -> dict[str, object]:
    """Convert an explanation to plain JSON values. Keys are a public interface."""
    report, pod_of = explanation.report, explanation.pod_of
    return {
        "schema": WHY_SCHEMA,
        "version": report.version,
        "node": report.node,
        "taken_unix_s": report.taken_unix_s,
        "summary": headline(explanation),
        "severity": explanation.severity.name.lower(),
        "tgid": explanation.tgid,
        "vmi": vmi_json(explanation.vmi) if explanation.vmi is not None else None,
        "attribution": {
            "source": explanation.attributed.value if explanation.attributed else None,
            "vmi_pods": list(explanation.pods),
            "pod_of": {"namespace": pod_of.namespace, "name": pod_of.name} if pod_of else None,
        },
        "evidence": _evidence(explanation.evidence),
        "processes": [_process(explained) for explained in explanation.processes],
        "processes_left_out": explanation.others_left_out,
        "sections": [
            {
                "title": section.title,
                "lines": [[line.label, line.words] for line in section.lines],
            }
            for section in sections(explanation)
        ],
    }


def _process(explained: ProcessExplanation) -> dict[str, object]:
    tracked = explained.process.tracked
    evidence = tracked.evidence if tracked is not None else None
    return process_json(explained.process) | {
        "is_main": explained.is_main,
        "program": tracked.program if tracked is not None else None,
        "asked_for": list(evidence.asked_for) if evidence is not None else None,
        "pod": tracked.pod.uid if tracked is not None and tracked.pod is not None else None,
        "evidence": _evidence(explained.evidence),
    }


def _evidence(found: Iterable[Piece]) -> list[dict[str, object]]:
    return [
        {
            "side": piece.side.value,
            "words": piece.words,
            "where": piece.where,
            "points_to": [kind.value for kind in piece.points_to],
            "reason_code": piece.reason.value if piece.reason is not None else None,
        }
        for piece in found
    ]
