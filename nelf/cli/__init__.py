"""The command line: compose, check, run, and say in one line what is wrong. Only this package knows Hydra."""

from nelf.cli.command import build, config, distill, main, start, train

__all__ = ["build", "config", "distill", "main", "start", "train"]
