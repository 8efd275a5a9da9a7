# SPDX-License-Identifier: Apache-2.0
"""Decodes what an agent answers: its report, an explanation, its checks. Pure.

Owns which keys of hvprobe's JSON are read, and which schemas this version understands. msgspec
skips all other keys. An agent is not trusted: texts are bounded here and made visible when they are
shown.
"""

import json
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from probes.host.hypervisors import HypervisorType
from probes.judge.reasons import Reason
from probes.report.model import SCHEMA
from probes.report.why import WHY_SCHEMA
from probes.vmi.attribution import valid_vm_name
from probes.vmi.foreign_text import one_line

DOCTOR_SCHEMA = "hvprobe-doctor/v1"
_TEXT_MAX = 300
_VERSION_MAX = 40

_T = TypeVar("_T", bound="_Answer")


class AnswerError(ValueError):
    """An answer cannot be used.

    The message is one line: why, and what to do.
    """


class _Part(msgspec.Struct, frozen=True, gc=False):
    """A part of an answer, of which only some keys are read."""


class _Answer(_Part, frozen=True):
    schema: str
    version: str = ""


class AcceleratorAnswer(_Part, frozen=True):
    """An accelerator of a node."""

    type: str
    available: bool | None = None


class _Node(_Part, frozen=True):
    module: str | None = None
    nested: bool | None = None
    accelerators: tuple[AcceleratorAnswer, ...] = ()


class HookAnswer(_Part, frozen=True):
    """A hook of an agent."""

    backend: str
    inactive: bool = False


class _Health(_Part, frozen=True):
    hooks: tuple[HookAnswer, ...] = ()


class VmAnswer(_Part, frozen=True):
    """One VM, as its node's agent reports it."""

    namespace: str
    name: str
    hypervisor_type: str
    verified: bool
    reasons: tuple[str, ...] = ()
    reason_codes: tuple[str, ...] = ()
    fallback: bool | None = None
    tgid: int | None = None
    cause: str | None = None
    cause_detail: str | None = None
    remedy: str | None = None
    vcpu_exits_per_second: float | None = None

    @property
    def type(self) -> HypervisorType:
        """How it runs; a type that this version does not know counts as unknown."""
        try:
            return HypervisorType(self.hypervisor_type)
        except ValueError:
            return HypervisorType.UNKNOWN

    @property
    def known_reasons(self) -> tuple[Reason, ...]:
        """The reasons that this version knows."""
        return tuple(_REASONS[code] for code in self.reason_codes if code in _REASONS)

    @property
    def words(self) -> str:
        """Why the verdict is what it is, in one line."""
        return one_line(next(iter(self.reasons), "the agent gives no reason"), longest=_TEXT_MAX)


class SnapshotAnswer(_Answer, frozen=True):
    """The report of a node."""

    taken_unix_s: float = 0.0
    node: _Node = _Node()
    health: _Health = _Health()
    vmis: tuple[VmAnswer, ...] = ()


class SectionAnswer(_Part, frozen=True):
    """A section of an explanation."""

    title: str
    lines: tuple[tuple[str, str], ...] = ()


class _Typed(_Part, frozen=True):
    hypervisor_type: str = HypervisorType.UNKNOWN.value


class WhyAnswer(_Answer, frozen=True):
    """The explanation of one VM."""

    summary: str = ""
    vmi: _Typed | None = None
    sections: tuple[SectionAnswer, ...] = ()

    @property
    def type(self) -> str:
        """The type of the VM."""
        return self.vmi.hypervisor_type if self.vmi else HypervisorType.UNKNOWN.value


@dataclass(frozen=True, slots=True, kw_only=True)
class Explained:
    """The explanation of one VM, and all that the agent sent."""

    answer: WhyAnswer
    document: str
    """Its JSON as text, with the keys that this version does not read."""


class CheckAnswer(_Part, frozen=True):
    """One check of a node."""

    question: str
    outcome: str
    finding: str = ""
    remedy: str | None = None


class DoctorAnswer(_Answer, frozen=True):
    """The checks of a node."""

    ability: str = "nothing"
    checks: tuple[CheckAnswer, ...] = ()


_REASONS = {reason.value: reason for reason in Reason}
_HEAD = msgspec.json.Decoder(_Answer)
_SNAPSHOT = msgspec.json.Decoder(SnapshotAnswer)
_WHY = msgspec.json.Decoder(WhyAnswer)
_DOCTOR = msgspec.json.Decoder(DoctorAnswer)


def decode_snapshot(body: bytes) -> SnapshotAnswer:
    """Decode a report. Raises AnswerError when it is none that this version understands."""
    found = _decoded(body, _SNAPSHOT, SCHEMA)
    # The agent takes names from the API server; anything else is no VM that could be shown.
    for vm in found.vmis:
        if valid_vm_name(vm.namespace, vm.name) is None:
            raise AnswerError(f"its answer names a VM {vm.namespace[:80]!a}/{vm.name[:80]!a}")
    return found


def decode_why(body: bytes) -> Explained:
    """Decode an explanation. Raises AnswerError when it is none that this version understands."""
    answer = _decoded(body, _WHY, WHY_SCHEMA)
    try:
        document = json.dumps(msgspec.json.decode(body), indent=2)
    except (ValueError, RecursionError) as err:
        raise AnswerError(f"its answer breaks {WHY_SCHEMA}: {one_line(str(err))}") from err
    return Explained(answer=answer, document=document)


def decode_doctor(body: bytes) -> DoctorAnswer:
    """Decode checks. Raises AnswerError when they are none that this version understands."""
    return _decoded(body, _DOCTOR, DOCTOR_SCHEMA)


def shown_version(version: str) -> str:
    """Return the version of an agent in one line."""
    return one_line(version, longest=_VERSION_MAX) or "unknown"


def _decoded(body: bytes, decoder: msgspec.json.Decoder[_T], schema: str) -> _T:
    try:
        head = _HEAD.decode(body)
    except (ValueError, RecursionError) as err:
        raise AnswerError(f"its answer is not hvprobe's JSON: {one_line(str(err))}") from err
    if head.schema != schema:
        raise AnswerError(
            f"its agent (version {shown_version(head.version)}) answers "
            f"{one_line(head.schema, longest=_VERSION_MAX)!a} instead of {schema}: use the hvprobe "
            "of its version"
        )
    try:
        return decoder.decode(body)
    except (ValueError, RecursionError) as err:
        raise AnswerError(f"its answer breaks {schema}: {one_line(str(err))}") from err
