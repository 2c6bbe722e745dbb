"""The command line: compose a configuration, check and run it, report errors in one line. Only here is Hydra used."""

from nelf.cli.command import build, config, distill, main, start, train

__all__ = ["build", "config", "distill", "main", "start", "train"]
