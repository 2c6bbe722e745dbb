"""Vectors as tuples of three floats, for compiled loops.

Numba keeps them in registers, whereas small arrays would be allocated.
"""

from __future__ import annotations

import numpy as np

from nelf.kernels.numba_tools import njit

__all__ = ["along", "blend", "dot", "product", "scaled", "unit"]

_inline = njit(inline="always", fastmath=True)


@_inline
def dot(a, b):  # type: ignore[no-untyped-def]
    """Return a . b."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


@_inline
def along(o, t, d):  # type: ignore[no-untyped-def]
    """Return o + t d."""
    return o[0] + t * d[0], o[1] + t * d[1], o[2] + t * d[2]


@_inline
def scaled(a, s):  # type: ignore[no-untyped-def]
    """Return s a."""
    return a[0] * s, a[1] * s, a[2] * s


@_inline
def product(a, b):  # type: ignore[no-untyped-def]
    """Multiply componentwise."""
    return a[0] * b[0], a[1] * b[1], a[2] * b[2]


@_inline
def blend(a, b, s):  # type: ignore[no-untyped-def]
    """Interpolate linearly from a to b, s in [0, 1]."""
    return a[0] + (b[0] - a[0]) * s, a[1] + (b[1] - a[1]) * s, a[2] + (b[2] - a[2]) * s


@_inline
def unit(a):  # type: ignore[no-untyped-def]
    """Normalize a."""
    return scaled(a, 1.0 / np.sqrt(dot(a, a) + 1e-30))
