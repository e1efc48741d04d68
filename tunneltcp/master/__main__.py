"""``python -m tunneltcp.master``: the one import upwards."""

import sys

from tunneltcp.cli.elsewhere import LINUX_ONLY

if sys.platform != "linux":
    sys.exit(f"tunneltcp: a master {LINUX_ONLY}")

from tunneltcp.cli.run import main

main()
