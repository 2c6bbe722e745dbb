"""Any model rendered from anywhere: pictures, depth, videos and meshes, by ``python -m nelf.render``."""

#: Kinds of depth files; named here, since the command line knows them before torch is loaded.
DEPTH_FORMATS = ("png", "npy", "pfm")
