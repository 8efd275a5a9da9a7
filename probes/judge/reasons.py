# SPDX-License-Identifier: Apache-2.0
"""Lists the reasons for verdicts, and how urgent each one is. Pure data.

Each reason is one row: a stable code, a phrase that fits the narrowest column, a sentence, the
minimum severity of a process that has the reason, and a remedy. Owns all texts of reasons;
renderers choose a length. Must not know which evidence leads to a reason (verdict.py).
"""

from enum import IntEnum, StrEnum
from typing import Self


class Outcome(StrEnum):
    """How well something works, which all outputs emphasize in the same way."""

    GOOD = "ok"
    DEGRADED = "warn"
    """Something is missing, unknown, or replaced by something weaker."""
    BAD = "fail"


class Severity(IntEnum):
    """How urgently a person should look at something, most urgent first.

    All outputs sort and mark by it.
    """

    CONTRADICTION = 0
    """The process claims one thing and the kernel says another."""
    FALLBACK = 1
    """The guest is emulated although this node could accelerate it."""
    UNKNOWN = 2
    """It is unknown how the guest runs."""
    UNVERIFIED = 3
    """The verdict is inferred."""
    FINE = 4

    @property
    def urgent(self) -> bool:
        """Whether every output marks it in red and lists it by name."""
        return self <= Severity.FALLBACK

    @property
    def outcome(self) -> Outcome:
        """The emphasis for a process of this severity."""
        if self.urgent:
            return Outcome.BAD
        return Outcome.GOOD if self is Severity.FINE else Outcome.DEGRADED

    @property
    def label(self) -> str:
        """The word for this severity in lists and filters."""
        return "not verified" if self is Severity.UNVERIFIED else self.name.lower()


_INSPECT = "inspect the process on the node: it is not what it claims to be"


class Reason(StrEnum):
    """Why a verdict is what it is.

    The value is the code: the name in lower case, which never changes.
    """

    short: str
    """At most 12 characters, for a narrow column."""
    sentence: str
    """The sentence that JSON, the page and wide columns show."""
    severity: Severity
    """The minimum severity of a process that has this reason."""
    remedy: str | None
    """What a person can do; None: nothing has to be done, or nothing can be done."""

    def __new__(
        cls,
        code: str,
        short: str,
        sentence: str,
        severity: Severity,
        remedy: str | None = None,
    ) -> Self:
        """Make the member from a row of the table."""
        reason = str.__new__(cls, code)
        reason._value_ = code
        reason.short = short
        reason.sentence = sentence
        reason.severity = severity
        reason.remedy = remedy
        return reason

    # The kernel shows how the guest runs.
    VM_EXITS_RECORDED = ("vm_exits_recorded", "exits seen", "VM exits recorded", Severity.FINE)
    USERSPACE_EXITS_RECORDED = (
        "userspace_exits_recorded",
        "RUN returned",
        "KVM_RUN returns recorded",
        Severity.FINE,
    )
    INSIDE_KVM_RUN = ("inside_kvm_run", "in KVM_RUN", "vCPU thread inside KVM_RUN", Severity.FINE)
    VCPU_STATISTICS = (
        "vcpu_statistics",
        "statistics",
        "KVM's own statistics count VM exits",
        Severity.FINE,
    )
    KVM_RUN_WORKER = (
        "kvm_run_worker",
        "KVM's worker",
        "KVM's worker thread was started by a KVM_RUN",
        Severity.FINE,
    )
    GUEST_TIME = ("guest_time", "guest time", "guest CPU time accounted", Severity.FINE)
    MSHV_RUN_RECORDED = ("mshv_run_recorded", "RUN_VP seen", "MSHV_RUN_VP recorded", Severity.FINE)
    INSIDE_MSHV_RUN = (
        "inside_mshv_run",
        "in RUN_VP",
        "vCPU thread inside MSHV_RUN_VP",
        Severity.FINE,
    )
    RUN_RECORDED = ("run_recorded", "run seen", "a run of its vCPUs was recorded", Severity.FINE)
    INSIDE_RUN = ("inside_run", "in run", "vCPU thread inside the run call", Severity.FINE)
    TCG_COMPUTES = (
        "tcg_computes",
        "TCG computes",
        "TCG threads compute, no accelerator in use",
        Severity.FINE,
    )
    HOOKS_LATE = (
        "hooks_late",
        "hooks late",
        "started before the hooks: proven by its descriptors instead of the ledger",
        Severity.FINE,
    )
    CAPABILITY_PROBE = (
        "capability_probe",
        "probe",
        "capability probe without a guest",
        Severity.FINE,
    )
    # The type is inferred.
    KVM_RUN_REFUSED = (
        "kvm_run_refused",
        "RUN refused",
        "KVM_RUN entered, but no guest seen to run",
        Severity.UNVERIFIED,
    )
    KVM_RUN_RESULT_UNREAD = (
        "kvm_run_result_unread",
        "RUN entered",
        "KVM_RUN entered, but its result cannot be read on this kernel",
        Severity.UNVERIFIED,
    )
    HOLDS_VCPUS = (
        "holds_vcpus",
        "not running",
        "holds vCPUs, not seen running",
        Severity.UNVERIFIED,
    )
    HOLDS_MSHV_VPS = (
        "holds_mshv_vps",
        "not running",
        "holds mshv vCPUs, not seen running",
        Severity.UNVERIFIED,
    )
    TCG_IDLE = ("tcg_idle", "TCG idle", "TCG threads have not computed yet", Severity.UNVERIFIED)
    ASKED_FOR_TCG = (
        "asked_for_tcg",
        "asked for",
        "no accelerator in use, command line asks for tcg",
        Severity.UNVERIFIED,
    )
    HOOKS_MISSING = (
        "hooks_missing",
        "no hook",
        "no hook attached that detects KVM_RUN",
        Severity.UNVERIFIED,
        "run hvprobe doctor on the node to see why the hooks are not attached",
    )
    LEDGER_INCOMPLETE = (
        "ledger_incomplete",
        "events lost",
        "the ledger dropped events",
        Severity.UNVERIFIED,
        "raise --ledger-capacity",
    )
    THREADS_UNSEEN = (
        "threads_unseen",
        "not all seen",
        "not every thread was seen outside KVM_RUN",
        Severity.UNVERIFIED,
    )
    # The type is unknown.
    KVM_RUN_UNHELD = (
        "kvm_run_unheld",
        "hidden RUN",
        "thread inside KVM_RUN on a descriptor that it closed",
        Severity.UNKNOWN,
        _INSPECT,
    )
    RUN_UNHELD = (
        "run_unheld",
        "hidden run",
        "thread inside the run call on a descriptor that it closed",
        Severity.UNKNOWN,
        _INSPECT,
    )
    NO_VCPU_YET = ("no_vcpu_yet", "no vCPU made", "no vCPU made", Severity.UNKNOWN)
    NO_VCPU_THREADS = ("no_vcpu_threads", "no vCPU", "no vCPU thread found", Severity.UNKNOWN)
    FDS_UNREADABLE = (
        "fds_unreadable",
        "unreadable",
        "file descriptors not fully readable",
        Severity.UNKNOWN,
        "run hvprobe doctor on the node: it names the capability or security module that denies it",
    )
    READ_BLOCKED = (
        "read_blocked",
        "read blocked",
        "reading its /proc files blocks",
        Severity.UNKNOWN,
        "the agent's log names the process: restart the VM if it hangs",
    )
    TOO_MUCH_TO_READ = (
        "too_much_to_read",
        "too much",
        "more threads or descriptors than hvprobe reads",
        Severity.UNKNOWN,
        _INSPECT,
    )
    NOT_READ_YET = (
        "not_read_yet",
        "not read yet",
        "some processes of this node are not read yet",
        Severity.UNKNOWN,
        "wait for the next refresh",
    )
    # No process could be attributed to the VM.
    NO_PROCESS = ("no_process", "no process", "no process found for this VM", Severity.UNKNOWN)
    NO_POD = (
        "no_pod",
        "no pod",
        "the API server lists no pod of this VM on this node",
        Severity.UNKNOWN,
        "check status.activePods of the VMI",
    )
    POD_CONTESTED = (
        "pod_contested",
        "pod claimed",
        "another VM claims the same pod",
        Severity.UNKNOWN,
        "look for two VMIs with the same pod in status.activePods",
    )
    SEVERAL_PROCESSES = (
        "several_processes",
        "several",
        "several processes of its pod could be this VM",
        Severity.UNKNOWN,
    )
    # What the process claims contradicts what the kernel says.
    CLAIMS_WITHOUT_FDS = (
        "claims_without_fds",
        "false claim",
        "a thread claims an accelerator of which no descriptor is held",
        Severity.CONTRADICTION,
        _INSPECT,
    )
    GUEST_TIME_WITHOUT_FDS = (
        "guest_time_without_fds",
        "no vCPU held",
        "guest CPU time without any vCPU descriptor",
        Severity.CONTRADICTION,
        _INSPECT,
    )
    CONTRADICTS_THREAD_NAMES = (
        "contradicts_thread_names",
        "not as named",
        "thread names claim another accelerator",
        Severity.CONTRADICTION,
        _INSPECT,
    )
    CONTRADICTS_COMMAND_LINE = (
        "contradicts_command_line",
        "not as asked",
        "command line asks for another accelerator",
        Severity.CONTRADICTION,
        _INSPECT,
    )
