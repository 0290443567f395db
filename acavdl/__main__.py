"""``python -m acavdl``: the command line."""

from acavdl.cli import main

main(prog_name="acavdl")
