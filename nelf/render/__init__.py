"""Render any model: images, depth, videos and meshes, by ``python -m nelf.render``."""

#: Formats of depth files; defined here so that the command line can be parsed before torch is imported.
DEPTH_FORMATS = ("png", "npy", "pfm")
