"""Light fields, what a student is: one evaluation for each ray."""

from nelf.lightfields.base import LightField
from nelf.lightfields.grid_r2l import GridR2L
from nelf.lightfields.mobile_r2l import MobileR2L

__all__ = ["GridR2L", "LightField", "MobileR2L"]
