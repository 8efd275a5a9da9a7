"""Errors of the ebpf room. Each message is one line: what failed, on what, why, what to do."""

NOT_PERMITTED = "not permitted"
"""Words of every reason that says the kernel refused BPF or a hook (EPERM)."""


class EbpfError(Exception):
    """Base of everything this room raises on purpose."""


class BpfUnavailableError(EbpfError):
    """No BPF program can be used at all: not compiled, not permitted, or no BPF on this kernel."""


class LedgerReadError(EbpfError):
    """The kernel table could not be read."""
