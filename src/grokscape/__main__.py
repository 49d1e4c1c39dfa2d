"""`python -m grokscape`, the same as the command `grokscape`."""

from grokscape.cli import main

main()
