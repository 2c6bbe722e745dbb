"""nelf distills neural radiance fields into neural light fields: one evaluation per ray.

The public names are imported on first use, so that ``import nelf`` does not import torch.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

try:
    __version__ = version("nelf")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0"

_NAMES = {
    "UserError": "nelf.errors",
    "Camera": "nelf.cameras",
    "Rays": "nelf.rays",
    "Scene": "nelf.scene",
    "Rendering": "nelf.rendering",
    "evaluate": "nelf.report.evaluation",
    "config": "nelf.cli",
    "load": "nelf.export.loading",
    "save": "nelf.storage",
    "view": "nelf.viewer.notebook",
    "write_views": "nelf.pipeline.stages.pseudo",
}
_MODULES = (
    *("callbacks", "cameras", "cli", "compression", "data", "encodings", "errors", "export", "fields", "interop"),
    *(
        "kernels",
        "lightfields",
        "metrics",
        "paths",
        "pipeline",
        "rays",
        "rendering",
        "report",
        "scene",
        "storage",
        "systems",
    ),
    "viewer",
)

__all__ = ["__version__", *_NAMES, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(import_module(_NAMES[name]), name)
    if name in _MODULES:
        return import_module(f"nelf.{name}")
    raise AttributeError(f"module 'nelf' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
