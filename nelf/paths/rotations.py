"""Rotations as quaternions, their interpolation, and poses under similarity transforms."""

import numpy as np


def quaternions(rotation: np.ndarray) -> np.ndarray:
    """(N, 4) unit quaternions w x y z of rotations (N, 3, 3)."""
    (a, b, c), (d, e, f), (g, h, i) = np.moveaxis(rotation, 0, -1)
    # Four times the outer product of each quaternion with itself; any row is a multiple of it, the longest is the most
    # accurate.
    outer = np.stack(
        [
            np.stack([1 + a + e + i, h - f, c - g, d - b], axis=-1),
            np.stack([h - f, 1 + a - e - i, b + d, c + g], axis=-1),
            np.stack([c - g, b + d, 1 - a + e - i, f + h], axis=-1),
            np.stack([d - b, c + g, f + h, 1 - a - e + i], axis=-1),
        ],
        axis=-2,
    )
    lengths = np.linalg.norm(outer, axis=-1)
    best = lengths.argmax(axis=-1)
    which = np.arange(len(best))
    return outer[which, best] / lengths[which, best, None]


def rotations(quaternion: np.ndarray) -> np.ndarray:
    """(N, 3, 3) rotations of unit quaternions (N, 4)."""
    w, x, y, z = quaternion.T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.moveaxis(np.array(rows), -1, 0)


def great_arc(first: np.ndarray, second: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Spherical interpolation (slerp) between unit quaternions (N, 4), the short way, at fractions (N, 1): (N, 4)."""
    cosine = (first * second).sum(-1, keepdims=True)
    second, angle = np.where(cosine < 0, -second, second), np.arccos(np.minimum(np.abs(cosine), 1.0))
    # Linear for nearly equal ones, for which the sine of the angle vanishes.
    one, other = np.where(angle < 1e-4, [1 - share, share], np.sin([(1 - share) * angle, share * angle]))
    between = one * first + other * second
    return between / np.linalg.norm(between, axis=-1, keepdims=True)


def moved(c2w: np.ndarray, similarity: np.ndarray) -> np.ndarray:
    """Transform poses to another space.

    Args:
        c2w: (N, 3, 4) poses.
        similarity: (4, 4) transform of points: a rotation, one scale, a translation.

    Returns:
        (N, 3, 4) float64 poses, whose rotations stay orthonormal.
    """
    scaled = similarity[:3, :3]
    back = scaled @ c2w
    back[:, :, :3] /= np.cbrt(np.linalg.det(scaled))
    back[:, :, 3] += similarity[:3, 3]
    return back
