"""The command line: one file per verb, each of which calls one function of the package."""

from halfmask.cli.app import main

__all__ = ["main"]
