"""A small ray tracer of solids, which renders the built-in scenes.

It shares no code with the radiance fields that are trained on its images. Spheres, boxes, cylinders and cones are
intersected in closed form, tori by sphere tracing of their exact distance. Shading: a sun with soft shadows, a sky with
ambient occlusion, specular highlights, and one mirror bounce with Schlick's approximation of Fresnel reflectance.
Nothing is random: all pixels of all views use the same samples.

Conventions: world +z up; distances along unit directions; colors are linear until each sample is encoded with a gamma
of 2.2; samples that hit are averaged, and alpha, their share, is not premultiplied.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nelf.data.solids import (
    AXES,
    BOUND,
    BOX,
    CENTER,
    COLOR,
    CONE,
    CYLINDER,
    GLOSS,
    GROUP,
    KIND,
    METAL,
    MIRROR,
    PATTERN,
    SCALE,
    SECOND,
    SHINE,
    SIZE,
    SKIP,
    SPHERE,
)
from nelf.data.vectors import along, blend, dot, product, scaled, unit
from nelf.kernels.numba_tools import njit

__all__ = ["Lights", "trace"]

_jit = njit(cache=True, nogil=True, fastmath=True)
_inline = njit(inline="always", fastmath=True)

_FAR = 1e9
_LIFT = 1e-5
_OCCLUSION_RANGE = 0.6


class Lights(NamedTuple):
    """Light directions for each of the S samples of a pixel: one toward the sun, A toward the sky.

    Attributes:
        sun: (S, 3) unit vectors toward the sun's disc.
        sky: (S, A, 3) unit vectors around +z, cosine-weighted.
    """

    sun: np.ndarray
    sky: np.ndarray


@_inline
def _three(table, i, k):  # type: ignore[no-untyped-def]
    return table[i, k], table[i, k + 1], table[i, k + 2]


@_inline
def _to_local(solids, i, v):  # type: ignore[no-untyped-def]
    x, y, z = _three(solids, i, AXES), _three(solids, i, AXES + 3), _three(solids, i, AXES + 6)
    return dot(x, v), dot(y, v), dot(z, v)


@_inline
def _to_world(solids, i, v):  # type: ignore[no-untyped-def]
    x, y, z = _three(solids, i, AXES), _three(solids, i, AXES + 3), _three(solids, i, AXES + 6)
    return along(along(scaled(x, v[0]), v[1], y), v[2], z)


# ------------------------------------------------------------------------------------------------ solids
# Each takes a ray in the solid's local axes and returns the distance (``_FAR`` for a miss) and the normal.


@_inline
def _roots(a, b, c):  # type: ignore[no-untyped-def]
    """Both roots of a t^2 + 2 b t + c = 0, the smaller first; an empty interval if there are none."""
    discriminant = b * b - a * c
    if discriminant < 0.0 or abs(a) < 1e-14:
        return _FAR, -_FAR
    root = np.sqrt(discriminant)
    first, second = (-b - root) / a, (-b + root) / a
    return min(first, second), max(first, second)


@_jit
def _sphere(o, d, radius):  # type: ignore[no-untyped-def]
    t, _ = _roots(1.0, dot(o, d), dot(o, o) - radius * radius)
    if t < 0.0 or t >= _FAR:
        return _FAR, d
    return t, scaled(along(o, t, d), 1.0 / radius)


@_jit
def _box(o, d, size):  # type: ignore[no-untyped-def]
    enter, leave, normal = -_FAR, _FAR, d
    for k in range(3):
        inverse = 1.0 / d[k] if abs(d[k]) > 1e-12 else 1e12
        middle, half = -o[k] * inverse, abs(size[k] * inverse)
        if middle - half > enter:
            enter = middle - half
            sign = -1.0 if d[k] > 0.0 else 1.0
            normal = (sign if k == 0 else 0.0, sign if k == 1 else 0.0, sign if k == 2 else 0.0)
        leave = min(leave, middle + half)
    if enter > leave or enter < 0.0:
        return _FAR, d
    return enter, normal


@_inline
def _disc(o, d, radius, height):  # type: ignore[no-untyped-def]
    """The disc at local z = ``height`` that faces away from z = 0, seen from outside."""
    sign = 1.0 if height > 0.0 else -1.0
    t = (height - o[2]) / d[2] if sign * d[2] < -1e-12 else -1.0
    x, y = o[0] + t * d[0], o[1] + t * d[1]
    if t < 0.0 or x * x + y * y > radius * radius:
        return _FAR, d
    return t, (0.0, 0.0, sign)


@_jit
def _cylinder(o, d, radius, half):  # type: ignore[no-untyped-def]
    a, b = d[0] * d[0] + d[1] * d[1], o[0] * d[0] + o[1] * d[1]
    t, _ = _roots(a, b, o[0] * o[0] + o[1] * o[1] - radius * radius)
    p = along(o, t, d)
    if 0.0 <= t < _FAR and abs(p[2]) <= half:
        return t, (p[0] / radius, p[1] / radius, 0.0)
    return _disc(o, d, radius, -half if d[2] > 0.0 else half)


@_jit
def _cone(o, d, radius, half):  # type: ignore[no-untyped-def]
    slope = radius / (2.0 * half)
    z, dz = slope * (half - o[2]), -slope * d[2]
    a, b = d[0] * d[0] + d[1] * d[1] - dz * dz, o[0] * d[0] + o[1] * d[1] - z * dz
    best, normal = _disc(o, d, radius, -half)
    for t in _roots(a, b, o[0] * o[0] + o[1] * o[1] - z * z):
        p = along(o, t, d)
        if 0.0 <= t < best and abs(p[2]) <= half:
            best, normal = t, unit((p[0], p[1], slope * slope * (half - p[2])))
    return best, normal


@_jit
def _torus(o, d, ring, tube):  # type: ignore[no-untyped-def]
    reach = ring + tube + 1e-3
    t, leave = _roots(1.0, dot(o, d), dot(o, o) - reach * reach)
    flat = tube + 1e-3  # the torus lies between two planes
    if abs(d[2]) > 1e-12:
        near, far = (-flat - o[2]) / d[2], (flat - o[2]) / d[2]
        t, leave = max(t, min(near, far)), min(leave, max(near, far))
    t = max(t, 0.0)
    for _ in range(512):  # grazing rays converge slowly
        if t > leave:
            break
        p = along(o, t, d)
        level = np.sqrt(p[0] * p[0] + p[1] * p[1]) + 1e-12
        distance = np.sqrt((level - ring) ** 2 + p[2] * p[2]) - tube
        if distance < 2e-6:
            shrink = 1.0 - ring / level
            return t, unit((p[0] * shrink, p[1] * shrink, p[2]))
        t += distance
    return _FAR, d


@_inline
def _near(solids, i, o, d, limit):  # type: ignore[no-untyped-def]
    """Whether a ray hits the bounding sphere of row ``i`` within ``limit``."""
    offset = along(o, -1.0, _three(solids, i, CENTER))
    nearest, bound = -dot(offset, d), solids[i, BOUND]
    return -bound < nearest < limit + bound and dot(offset, offset) - nearest * nearest < bound * bound


@_jit
def _hit(solids, i, o, d):  # type: ignore[no-untyped-def]
    """Distance to solid ``i`` and the normal in its local axes; ``_FAR`` for a miss."""
    offset = along(o, -1.0, _three(solids, i, CENTER))
    local_o, local_d, kind = _to_local(solids, i, offset), _to_local(solids, i, d), solids[i, KIND]
    size = _three(solids, i, SIZE)
    if kind == SPHERE:
        return _sphere(local_o, local_d, size[0])
    if kind == BOX:
        return _box(local_o, local_d, size)
    if kind == CYLINDER:
        return _cylinder(local_o, local_d, size[0], size[1])
    if kind == CONE:
        return _cone(local_o, local_d, size[0], size[1])
    return _torus(local_o, local_d, size[0], size[1])


@_jit
def _nearest(solids, o, d):  # type: ignore[no-untyped-def]
    """Distance, index (-1 for none) and world normal of the first solid on a ray."""
    nearest, which, normal = _FAR, -1, d
    i = 0
    while i < len(solids):
        if not _near(solids, i, o, d, nearest):
            i = int(solids[i, SKIP])
            continue
        if solids[i, KIND] != GROUP:
            t, local = _hit(solids, i, o, d)
            if t < nearest:
                nearest, which, normal = t, i, local
        i += 1
    if which >= 0:
        normal = _to_world(solids, which, normal)
    return nearest, which, normal


@_jit
def _blocked(solids, o, d, limit):  # type: ignore[no-untyped-def]
    """Whether a ray hits any solid within ``limit``."""
    i = 0
    while i < len(solids):
        if not _near(solids, i, o, d, limit):
            i = int(solids[i, SKIP])
            continue
        if solids[i, KIND] != GROUP and _hit(solids, i, o, d)[0] < limit:
            return True
        i += 1
    return False


# ------------------------------------------------------------------------------------------------ light


@_jit
def _sky(d, sun):  # type: ignore[no-untyped-def]
    """Sky color for reflected rays; for camera rays, the background is transparent."""
    up = 0.5 + 0.5 * d[2]
    color = blend((0.30, 0.27, 0.25), (0.98, 0.96, 0.92), min(1.0, max(0.0, 8.0 * (up - 0.47))))
    color = blend(color, (0.22, 0.42, 0.80), min(1.0, max(0.0, 1.6 * (up - 0.52))))
    glow = max(0.0, dot(d, sun)) ** 24
    return along(color, glow, (1.6, 1.4, 1.1))


@_jit
def _surface(solids, i, p):  # type: ignore[no-untyped-def]
    """Color of solid ``i`` at world point ``p``, according to its pattern."""
    color, second = _three(solids, i, COLOR), _three(solids, i, SECOND)
    pattern, scale = solids[i, PATTERN], solids[i, SCALE]
    local = _to_local(solids, i, along(p, -1.0, _three(solids, i, CENTER)))
    if pattern == 1.0 and (int(np.floor(local[0] * scale)) + int(np.floor(local[1] * scale))) % 2:
        return second
    if pattern == 2.0 and int(np.floor(local[2] * scale)) % 2:
        return second
    return color


@_jit
def _lit(solids, i, p, n, view, sun, ambient):  # type: ignore[no-untyped-def]
    """Linear color of a point seen from ``view``, without mirror reflections."""
    albedo, metal = _surface(solids, i, p), solids[i, METAL] > 0.0
    sky = blend((0.34, 0.30, 0.27), (0.62, 0.68, 0.78), 0.5 + 0.5 * n[2])
    diffuse = 0.25 if metal else 1.0
    color = scaled(product(albedo, sky), diffuse * ambient)
    facing = dot(n, sun)
    if facing > 0.0 and not _blocked(solids, p, sun, _FAR):
        half = unit(along(sun, 1.0, view))
        highlight = solids[i, SHINE] * max(0.0, dot(n, half)) ** solids[i, GLOSS]
        tint = albedo if metal else (1.0, 1.0, 1.0)
        light = along(scaled(albedo, diffuse * facing), highlight, tint)
        color = along(color, 1.0, product(light, (1.75, 1.62, 1.42)))
    return color


@_jit
def _openness(solids, p, n, sky, sample):  # type: ignore[no-untyped-def]
    """Ambient occlusion: 0.25 to 1, by the share of sky directions around the normal without a hit nearby."""
    sign = 1.0 if n[2] >= 0.0 else -1.0
    a = -1.0 / (sign + n[2])
    b = n[0] * n[1] * a
    tangent = (1.0 + sign * n[0] * n[0] * a, sign * b, -sign * n[0])
    bitangent = (b, sign + n[1] * n[1] * a, -n[1])
    free = 0
    for k in range(sky.shape[1]):
        s = sky[sample, k, 0], sky[sample, k, 1], sky[sample, k, 2]
        d = along(along(scaled(tangent, s[0]), s[1], bitangent), s[2], n)
        free += not _blocked(solids, p, d, _OCCLUSION_RANGE)
    return 0.25 + 0.75 * free / sky.shape[1]


@_jit
def _shade(solids, o, d, sun, sky, sample):  # type: ignore[no-untyped-def]
    """Linear color along a ray, and whether it hits anything."""
    t, i, n = _nearest(solids, o, d)
    if i < 0:
        return (0.0, 0.0, 0.0), False
    p = along(along(o, t, d), _LIFT, n)
    view = scaled(d, -1.0)
    color = _lit(solids, i, p, n, view, sun, _openness(solids, p, n, sky, sample))
    mirror = solids[i, MIRROR]
    if mirror > 0.0:
        cosine = max(0.0, dot(n, view))
        share = mirror + (1.0 - mirror) * (1.0 - cosine) ** 5
        r = along(d, 2.0 * cosine, n)
        far, j, m = _nearest(solids, p, r)
        seen = _sky(r, sun)
        if j >= 0:
            seen = _lit(solids, j, along(along(p, far, r), _LIFT, m), m, scaled(r, -1.0), sun, 0.8)
        if solids[i, METAL] > 0.0:
            seen = product(seen, _surface(solids, i, p))
        color = along(scaled(color, 1.0 - share), share, seen)
    return color, True


@_jit
def _trace(solids, sun, sky, frame, bent, side, out):  # type: ignore[no-untyped-def]
    """Fill one (H, W, 4) image; rows of ``frame``: eye, vector to the image corner, one pixel right, one pixel down."""
    samples = side * side
    for row in range(out.shape[0]):
        for column in range(out.shape[1]):
            red = green = blue = hits = 0.0
            for sample in range(samples):
                x, y = column + (sample % side + 0.5) / side, row + (sample // side + 0.5) / side
                if len(bent):
                    i, j = row * side + sample // side, column * side + sample % side
                    x, y = bent[i, j, 0], bent[i, j, 1]
                d = along(along(_three(frame, 1, 0), x, _three(frame, 2, 0)), y, _three(frame, 3, 0))
                color, hit = _shade(solids, _three(frame, 0, 0), unit(d), _three(sun, sample, 0), sky, sample)
                if hit:
                    hits += 1.0
                    red += min(1.0, color[0]) ** (1.0 / 2.2)
                    green += min(1.0, color[1]) ** (1.0 / 2.2)
                    blue += min(1.0, color[2]) ** (1.0 / 2.2)
            inverse = 1.0 / max(hits, 1.0)
            out[row, column, 0], out[row, column, 1] = red * inverse, green * inverse
            out[row, column, 2], out[row, column, 3] = blue * inverse, hits / samples


def trace(
    solids: np.ndarray,
    lights: Lights,
    c2w: np.ndarray,
    intrinsics: np.ndarray,
    width: int,
    height: int,
    bent: np.ndarray | None = None,
) -> np.ndarray:
    """Render one image.

    Args:
        solids: the table of ``pack``.
        lights: directions for S = s * s samples per pixel, which form an s x s grid.
        c2w: (3, 4) camera to world, OpenGL axes.
        intrinsics: (4,) ``fx, fy, cx, cy`` in pixels.
        width: in pixels.
        height: in pixels.
        bent: (height * s, width * s, 2) for a camera with a lens: the image position, x and y in pixels, at which a
            pinhole camera has the ray of each sample.

    Returns:
        (height, width, 4) float32 rgba in [0, 1], alpha not premultiplied.
    """
    c2w = np.asarray(c2w, dtype=np.float64)
    fx, fy, cx, cy = (float(value) for value in intrinsics)
    across, down = c2w[:, 0] / fx, -c2w[:, 1] / fy
    corner = -c2w[:, 2] - cx * across - cy * down
    out = np.empty((height, width, 4), dtype=np.float32)
    side = round(len(lights.sun) ** 0.5)
    bent = np.empty((0, 0, 2)) if bent is None else np.ascontiguousarray(bent, dtype=np.float64)
    _trace(solids, lights.sun, lights.sky, np.stack([c2w[:, 3], corner, across, down]), bent, side, out)
    return out
