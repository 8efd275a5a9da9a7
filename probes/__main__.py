"""``python -m probes`` is the command ``hvprobe``."""

import sys

from probes.cli import main

sys.exit(main())
