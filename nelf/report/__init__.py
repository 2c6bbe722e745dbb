"""Evaluation and reports of a run: metrics on a split, tables, plots, images and the page."""

from nelf.report.evaluation import evaluate, latencies, orbit_video

__all__ = ["evaluate", "latencies", "orbit_video"]
