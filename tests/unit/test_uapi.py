# SPDX-License-Identifier: Apache-2.0
"""The kernel's request numbers in Python agree with those in the BPF text."""

import re
from importlib import resources

from ebpf import uapi
from ebpf.hooks import PROGRAM_FILES


def test_requests_are_those_of_the_hooks() -> None:
    """Every request number of ``ebpf.uapi`` is the one that the BPF text defines."""
    text = "".join(resources.files("ebpf").joinpath(name).read_text() for name in PROGRAM_FILES)
    written = dict(re.findall(r"^#define (\w+) (0x[0-9A-F]+)$", text, flags=re.MULTILINE))
    ours = {name: value for name, value in vars(uapi).items() if name.isupper()}
    assert ours == {name: int(written[name], 16) for name in ours}
    assert set(ours) == {"KVM_CREATE_VM", "KVM_RUN", "MSHV_RUN_VP"}
