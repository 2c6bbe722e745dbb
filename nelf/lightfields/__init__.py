"""Light fields, the students: one network evaluation per ray or block of pixels."""

from nelf.lightfields.base import LightField
from nelf.lightfields.dylin import DyLiN
from nelf.lightfields.grid_dylin import GridDyLiN
from nelf.lightfields.grid_r2l import GridR2L
from nelf.lightfields.mobile_r2l import MobileR2L
from nelf.lightfields.r2l import R2L

__all__ = ["R2L", "DyLiN", "GridDyLiN", "GridR2L", "LightField", "MobileR2L"]
