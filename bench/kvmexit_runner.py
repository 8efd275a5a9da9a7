# SPDX-License-Identifier: Apache-2.0
"""Runs the distribution's kvmexit-bpfcc where it would refuse to start. Arguments: TOOL HEADERS.

The tool runs unchanged from where the distribution installs it. Three things around it differ:

* The tool refuses processors that are not Intel's, because its table of exit names is Intel's. The
  names are not measured, so this runner answers its question about the processor.
* The tool includes linux/delay.h of the kernel's headers, and does not use it. The folder HEADERS
  has hvprobe's stub headers and an empty linux/delay.h. No header affects the tool's cost.
* The tool uses the classic tracepoint if KVM is built into the kernel, and otherwise the raw one,
  which costs less. This runner makes it use the raw one, so the peer is compared at its cheapest.
"""

import os
import runpy
import subprocess
import sys

import bcc


def intel_cpuinfo(*_: object, **__: object) -> bytes:
    return b"vendor_id : GenuineIntel"


def main() -> None:
    _, tool, headers = sys.argv
    sys.argv = [tool]
    os.environ["BCC_KERNEL_SOURCE"] = headers
    # The tool reads bytes, so the overloads of check_output that return text are left out.
    subprocess.check_output = intel_cpuinfo  # type: ignore[assignment]
    bcc.BPF.support_raw_tracepoint_in_module = staticmethod(lambda: True)
    runpy.run_path(tool, run_name="__main__")


if __name__ == "__main__":
    main()
