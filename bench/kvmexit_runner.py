# SPDX-License-Identifier: Apache-2.0
"""Runs the distribution's kvmexit-bpfcc where it would refuse to start. Arguments: TOOL HEADERS.

The tool is read from where the distribution has put it and changed in nothing. Around it, three
things are other than it finds them:

* It refuses processors that are not Intel's. Its question is answered for it (its table of names
  is Intel's; names are not what is measured).
* It wants linux/delay.h, which it does not use, from the kernel's headers. It gets hvprobe's stub
  headers and an empty one, in the folder HEADERS: what it costs depends on no header.
* With KVM built into the kernel it falls back to the classic tracepoint, elsewhere it takes the
  raw one, which costs less. It is told to take the raw one: the cheaper form of the peer.
"""

import os
import runpy
import subprocess
import sys

import bcc


def answer_about_the_processor(*_: object, **__: object) -> bytes:
    return b"vendor_id : GenuineIntel"


def main() -> None:
    _, tool, headers = sys.argv
    sys.argv = [tool]
    os.environ["BCC_KERNEL_SOURCE"] = headers
    # The tool reads bytes; the overloads that answer with text are left out.
    subprocess.check_output = answer_about_the_processor  # type: ignore[assignment]
    bcc.BPF.support_raw_tracepoint_in_module = staticmethod(lambda: True)
    runpy.run_path(tool, run_name="__main__")


if __name__ == "__main__":
    main()
