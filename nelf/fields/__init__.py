"""Radiance fields, what a teacher is: (positions, viewdirs) -> (rgb, sigma)."""

from nelf.fields.ngp import NGP

__all__ = ["NGP"]
