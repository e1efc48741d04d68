"""``python -m tunneltcp.master``: the one import upwards."""

from tunneltcp.cli.run import main

main()
