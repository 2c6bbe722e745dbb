"""Any model rendered from anywhere: pictures, depth, videos and meshes, by ``python -m nelf.render``."""
