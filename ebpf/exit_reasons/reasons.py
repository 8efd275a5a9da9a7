# SPDX-License-Identifier: Apache-2.0
"""Decodes the numbers of VM exit reasons. Pure.

Owns the layout of tracepoint kvm:kvm_exit as tracefs describes it, and the names of reasons. Must
not know how exits are counted. Names are the kernel's constants without their prefix: EXIT_REASON_
(arch/x86/include/uapi/asm/vmx.h), SVM_EXIT_ (uapi/asm/svm.h), ESR_ELx_EC_ and ARM_EXCEPTION_
(arch/arm64/include/asm/esr.h and kvm_asm.h).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

VMX_FAILED_ENTRY = 0x80000000
"""Flag of a VMX reason: the guest was not entered at all (VMX_EXIT_REASONS_FAILED_VMENTRY)."""
VMX_BASIC = 0xFFFF
"""The part of a VMX reason that holds its number; the bits above it are flags."""
ARM_TRAP = 2
"""ARM_EXCEPTION_TRAP: the exception class is meaningful for this cause only."""


class Isa(StrEnum):
    """The instruction set whose numbering the reasons follow."""

    VMX = "vmx"
    SVM = "svm"
    ARM64 = "arm64"
    UNKNOWN = "unknown"


_X86_ISA = {1: Isa.VMX, 2: Isa.SVM}
"""Field ``isa`` (arch/x86/kvm/trace.h: KVM_ISA_VMX, KVM_ISA_SVM)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasonLayout:
    """Offsets of the fields of kvm:kvm_exit on this kernel, bytes."""

    reason: int
    isa: int | None
    detail: int | None

    @property
    def flags(self) -> tuple[str, ...]:
        """Compiler flags for exit_reasons.bpf.c."""
        named = (("REASON", self.reason), ("ISA", self.isa), ("DETAIL", self.detail))
        return tuple(f"-D{name}_OFFSET={at}" for name, at in named if at is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasonCount:
    """How often the guests of one process left the CPU for one reason."""

    isa: Isa
    code: int
    """The kernel's number: x86 exit reason without flags; arm64: exception class, or see name."""
    name: str
    total: int
    """Exits since the process was chosen."""


def layout_from(at: Mapping[str, int]) -> ReasonLayout | None:
    """Return where the fields are, given the offsets from tracefs; None: the layout is unknown."""
    if "exit_reason" in at and "isa" in at:
        return ReasonLayout(reason=at["exit_reason"], isa=at["isa"], detail=None)
    if "ret" in at and "esr_ec" in at:
        return ReasonLayout(reason=at["ret"], isa=None, detail=at["esr_ec"])
    return None


def reason_count(
    layout: ReasonLayout, *, isa: int, reason: int, detail: int, total: int
) -> ReasonCount:
    """Make a named count from a record of the kernel's table."""
    if layout.detail is not None:
        trapped = reason == ARM_TRAP
        return ReasonCount(
            isa=Isa.ARM64,
            code=detail if trapped else reason,
            name=_named(ARM64_CLASSES, detail) if trapped else _named(ARM64_CAUSES, reason),
            total=total,
        )
    whose = _X86_ISA.get(isa, Isa.UNKNOWN)
    if whose is Isa.VMX:
        failed = " (entry failed)" if reason & VMX_FAILED_ENTRY else ""
        basic = reason & VMX_BASIC
        name = _named(VMX_REASONS, basic) + failed
        return ReasonCount(isa=whose, code=basic, name=name, total=total)
    name = _named(SVM_REASONS if whose is Isa.SVM else {}, reason)
    return ReasonCount(isa=whose, code=reason, name=name, total=total)


def _named(names: Mapping[int, str], code: int) -> str:
    return names.get(code) or f"reason {code:#x}"


def _numbered(words: str, *, first: int = 0) -> dict[int, str]:
    """Number the words in order; ``-`` marks a number without a name."""
    return {first + i: word for i, word in enumerate(words.split()) if word != "-"}


VMX_REASONS: Mapping[int, str] = _numbered(
    """
    EXCEPTION_NMI EXTERNAL_INTERRUPT TRIPLE_FAULT INIT_SIGNAL SIPI_SIGNAL - OTHER_SMI
    INTERRUPT_WINDOW NMI_WINDOW TASK_SWITCH CPUID - HLT INVD INVLPG RDPMC RDTSC - VMCALL VMCLEAR
    VMLAUNCH VMPTRLD VMPTRST VMREAD VMRESUME VMWRITE VMOFF VMON CR_ACCESS DR_ACCESS IO_INSTRUCTION
    MSR_READ MSR_WRITE INVALID_STATE MSR_LOAD_FAIL - MWAIT_INSTRUCTION MONITOR_TRAP_FLAG -
    MONITOR_INSTRUCTION PAUSE_INSTRUCTION MCE_DURING_VMENTRY - TPR_BELOW_THRESHOLD APIC_ACCESS
    EOI_INDUCED GDTR_IDTR LDTR_TR EPT_VIOLATION EPT_MISCONFIG INVEPT RDTSCP PREEMPTION_TIMER
    INVVPID WBINVD XSETBV APIC_WRITE RDRAND INVPCID VMFUNC ENCLS RDSEED PML_FULL XSAVES XRSTORS
    - - UMWAIT TPAUSE - - - - - BUS_LOCK NOTIFY SEAMCALL TDCALL - - - - - - MSR_READ_IMM
    MSR_WRITE_IMM
    """
)
SVM_REASONS: Mapping[int, str] = {
    **{number: f"READ_CR{number}" for number in range(16)},
    **{0x10 + number: f"WRITE_CR{number}" for number in range(16)},
    **{0x20 + number: f"READ_DR{number}" for number in range(16)},
    **{0x30 + number: f"WRITE_DR{number}" for number in range(16)},
    **_numbered(
        """
        EXCP_DE EXCP_DB EXCP_NMI EXCP_BP EXCP_OF EXCP_BR EXCP_UD EXCP_NM EXCP_DF EXCP_CSO EXCP_TS
        EXCP_NP EXCP_SS EXCP_GP EXCP_PF - EXCP_MF EXCP_AC EXCP_MC EXCP_XF - EXCP_CP
        """,
        first=0x40,
    ),
    **_numbered(
        """
        INTR NMI SMI INIT VINTR CR0_SEL_WRITE IDTR_READ GDTR_READ LDTR_READ TR_READ IDTR_WRITE
        GDTR_WRITE LDTR_WRITE TR_WRITE RDTSC RDPMC PUSHF POPF CPUID RSM IRET SWINT INVD PAUSE HLT
        INVLPG INVLPGA IOIO MSR TASK_SWITCH FERR_FREEZE SHUTDOWN VMRUN VMMCALL VMLOAD VMSAVE STGI
        CLGI SKINIT RDTSCP ICEBP WBINVD MONITOR MWAIT MWAIT_COND XSETBV RDPRU EFER_WRITE_TRAP
        """,
        first=0x60,
    ),
    **{0x90 + number: f"CR{number}_WRITE_TRAP" for number in range(16)},
    **_numbered("INVLPGB INVLPGB_ILLEGAL INVPCID MCOMMIT TLBSYNC BUS_LOCK IDLE_HLT", first=0xA0),
    **_numbered("NPF AVIC_INCOMPLETE_IPI AVIC_UNACCELERATED_ACCESS VMGEXIT", first=0x400),
    **_numbered(
        """
        VMGEXIT_MMIO_READ VMGEXIT_MMIO_WRITE VMGEXIT_NMI_COMPLETE VMGEXIT_AP_HLT_LOOP
        VMGEXIT_AP_JUMP_TABLE
        """,
        first=0x80000001,
    ),
    **_numbered(
        """
        VMGEXIT_PSC VMGEXIT_GUEST_REQUEST VMGEXIT_EXT_GUEST_REQUEST VMGEXIT_AP_CREATION
        """,
        first=0x80000010,
    ),
    0x8000FFFD: "VMGEXIT_HV_FEATURES",
    0xFFFFFFFF: "ERR",
}
ARM64_CAUSES: Mapping[int, str] = {
    0: "IRQ",
    1: "SERROR",
    2: "TRAP",
    3: "IL",
    0xBADCA11: "HYP_GONE",
}
"""Why the CPU returned to the host (ARM_EXCEPTION_…). A TRAP has its class in ARM64_CLASSES."""
ARM64_CLASSES: Mapping[int, str] = _numbered(
    """
    UNKNOWN WFx - CP15_32 CP15_64 CP14_MR CP14_LS FP_ASIMD CP10_ID PAC OTHER - CP14_64 BTI ILL - -
    SVC32 HVC32 SMC32 SYSREG128 SVC64 HVC64 SMC64 SYS64 SVE ERET - FPAC SME - IMP_DEF IABT_LOW
    IABT_CUR PC_ALIGN - DABT_LOW DABT_CUR SP_ALIGN MOPS FP_EXC32 - - - FP_EXC64 GCS - SERROR
    BREAKPT_LOW BREAKPT_CUR SOFTSTP_LOW SOFTSTP_CUR WATCHPT_LOW WATCHPT_CUR - - BKPT32 - VECTOR32 -
    BRK64
    """
)
