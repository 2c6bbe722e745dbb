"""Trained light fields as files that need no PyTorch: ONNX graphs, and bundles that describe how to render them."""

from nelf.export.bundle import read_bundle, write_bundle
from nelf.export.graph import onnx
from nelf.export.loading import load
from nelf.export.runtime import ExportedLightField

__all__ = ["ExportedLightField", "load", "onnx", "read_bundle", "write_bundle"]
