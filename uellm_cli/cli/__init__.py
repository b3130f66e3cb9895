"""The command line: parse, one call of the pipeline, render, exit code. One file per command."""

from uellm_cli.cli.app import main

__all__ = ["main"]
