"""Radiance fields, the teachers: density and color at positions."""

from nelf.fields.base import RadianceField
from nelf.fields.displacement import DisplacementGrid, DisplacementNetwork
from nelf.fields.dnerf import DNeRF
from nelf.fields.dynamic_ngp import DynamicNGP
from nelf.fields.hierarchical import HierarchicalSampler
from nelf.fields.hyper_ngp import HyperNGP
from nelf.fields.nerf import GridNeRF, NeRF
from nelf.fields.ngp import NGP
from nelf.fields.samplers import OccupancySampler, Sampler, StratifiedSampler
from nelf.fields.volume import Pass

__all__ = [
    "NGP",
    "DNeRF",
    "DisplacementGrid",
    "DisplacementNetwork",
    "DynamicNGP",
    "GridNeRF",
    "HierarchicalSampler",
    "HyperNGP",
    "NeRF",
    "OccupancySampler",
    "Pass",
    "RadianceField",
    "Sampler",
    "StratifiedSampler",
]
