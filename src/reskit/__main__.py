"""``python -m reskit``: the command line."""

from reskit.cli import main

main()
