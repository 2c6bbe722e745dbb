"""Radiance fields, what a teacher is: density and color at positions."""

from nelf.fields.base import RadianceField
from nelf.fields.ngp import NGP
from nelf.fields.samplers import OccupancySampler, Sampler, StratifiedSampler
from nelf.fields.volume import Pass

__all__ = ["NGP", "OccupancySampler", "Pass", "RadianceField", "Sampler", "StratifiedSampler"]
