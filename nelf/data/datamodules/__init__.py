"""LightningDataModules: a scene's views as training batches, validation views and test views.

Training never ends by itself (no epochs): bound it with ``max_steps`` or ``max_time`` and give the Trainer an
integer ``val_check_interval`` with ``check_val_every_n_epoch=None``.
"""

from nelf.data.datamodules.base import SceneDataModule
from nelf.data.datamodules.blender import BlenderDataModule, DNeRFDataModule
from nelf.data.datamodules.captures import ColmapDataModule, HyperNeRFDataModule, LLFFDataModule, PhotosDataModule
from nelf.data.datamodules.demos import DemoDataModule, DemoDynamicDataModule, DemoHandheldDataModule

__all__ = [
    "BlenderDataModule",
    "ColmapDataModule",
    "DNeRFDataModule",
    "DemoDataModule",
    "DemoDynamicDataModule",
    "DemoHandheldDataModule",
    "HyperNeRFDataModule",
    "LLFFDataModule",
    "PhotosDataModule",
    "SceneDataModule",
]
