"""Errors of the ebpf room. Each message is one line: what failed, on what, why, what to do."""


class EbpfError(Exception):
    """Base of everything this room raises on purpose."""


class BpfUnavailableError(EbpfError):
    """No BPF program can be used at all: not compiled, not permitted, or no BPF on this kernel."""


class LedgerReadError(EbpfError):
    """The kernel table could not be read."""
