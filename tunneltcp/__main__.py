"""``python -m tunneltcp``."""

from tunneltcp.cli.main import main

main()
