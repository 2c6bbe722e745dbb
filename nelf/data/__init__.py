"""Scenes: readers that all return a ``Scene``, the Blender writer, the built-in scenes, and training batches."""

from nelf.data.batches import ImageBatch, RayBatch
from nelf.data.blender import read_scene, read_views, with_pseudo_views
from nelf.data.colmap import read_colmap
from nelf.data.datamodules import (
    BlenderDataModule,
    ColmapDataModule,
    DemoDataModule,
    DemoDynamicDataModule,
    DemoHandheldDataModule,
    DNeRFDataModule,
    HyperNeRFDataModule,
    LLFFDataModule,
    PhotosDataModule,
    SceneDataModule,
)
from nelf.data.hypernerf import read_capture
from nelf.data.llff import read_llff
from nelf.data.photos import register_photos
from nelf.data.writer import SceneWriter, write_scene
from nelf.scene import BACKGROUNDS, Scene, Split, View, composite_background

__all__ = [
    "BACKGROUNDS",
    "BlenderDataModule",
    "ColmapDataModule",
    "DNeRFDataModule",
    "DemoDataModule",
    "DemoDynamicDataModule",
    "DemoHandheldDataModule",
    "HyperNeRFDataModule",
    "ImageBatch",
    "LLFFDataModule",
    "PhotosDataModule",
    "RayBatch",
    "Scene",
    "SceneDataModule",
    "SceneWriter",
    "Split",
    "View",
    "composite_background",
    "read_capture",
    "read_colmap",
    "read_llff",
    "read_scene",
    "read_views",
    "register_photos",
    "with_pseudo_views",
    "write_scene",
]
