"""What a run is measured and shown by: metrics on a split, tables, plots, pictures and the page."""

from nelf.report.evaluation import evaluate, latencies, orbit_video

__all__ = ["evaluate", "latencies", "orbit_video"]
