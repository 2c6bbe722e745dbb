"""The operations of a fast radiance field: hash-grid encode, small MLPs, look-up in space and time, march, composite.

Each has one signature, given here, and several backends behind it with the same results:

    reference   plain PyTorch on any device: the definition, and the oracle of the tests
    cpu         Numba on all cores, compiled once and cached on disk
    triton      for a GPU; comes with PyTorch's CUDA wheels for Linux, and needs no CUDA compiler
    tcnn        tiny-cuda-nn's hash grid and fused networks, where ``tinycudann`` is installed and built for the GPU

The backend follows the device of the tensors and what runs there; ``NELF_KERNELS=reference|cpu|triton|tcnn`` forces
one. An operation that it lacks falls back to the next one: tcnn, triton, reference.

Notation, shared by everything that marches rays::

    N  rays          rays_o, rays_d (N, 3), in the coordinates of the grid
    S  samples       ragged: sample s belongs to ray ``ray_indices[s]``, front to back, rays in order; those of ray N,
                     which does not exist, are padding
    t                position along a ray in multiples of ``rays_d``; a sample covers [t_starts, t_ends]
"""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from nelf.errors import UserError
from nelf.kernels.gpu import obstacle, runs

#: By operation and backend: the module that implements it. A backend that lacks one uses the reference.
IMPLEMENTATIONS: dict[str, dict[str, str]] = {
    "hash_encode": {"cpu": "cpu_field", "triton": "triton_field", "tcnn": "tcnn_field"},
    "mlp": {"triton": "triton_mlp", "tcnn": "tcnn_field"},
    "space_time_lookup": {"cpu": "cpu_motion", "triton": "triton_motion"},
    "march": {"cpu": "cpu_rays", "triton": "triton_rays"},
    "march_within": {"triton": "triton_rays"},
    "composite": {"cpu": "cpu_rays", "triton": "triton_rays"},
    "ray_features": {"cpu": "cpu_lookup", "triton": "triton_lookup"},
    "trilinear": {"cpu": "cpu_trilinear", "triton": "triton_trilinear"},
}
BACKENDS = ("reference", "cpu", "triton", "tcnn")
_PREFERRED = {"cpu": ("cpu",), "cuda": ("tcnn", "triton")}  # by the type of device, the fastest first


class Samples(NamedTuple):
    """Ragged samples along rays: ``t_starts``, ``t_ends`` (S,) and ``ray_indices`` (S,) int64, non-decreasing."""

    t_starts: Tensor
    t_ends: Tensor
    ray_indices: Tensor


class Composited(NamedTuple):
    """What ``composite`` returns: ``rgb`` (N, 3), ``opacity`` (N,), ``depth`` (N,), ``weights`` (S,)."""

    rgb: Tensor
    opacity: Tensor
    depth: Tensor
    weights: Tensor


@dataclass(frozen=True)
class HashGrid:
    """The geometry of a multi-resolution hash grid over the unit cube, in tiny-cuda-nn's layout.

    Level ``l`` has ``scale_l = base_resolution * per_level_scale**l - 1`` cells between the first and the last
    half cell, ``ceil(scale_l) + 1`` entries per side, and a table of at most ``2**log2_table`` entries. A position
    ``x`` in [0, 1] has the grid coordinate ``x * scale_l + 0.5``. Levels that fit are dense (x fastest), the others
    hashed.

    The scales are computed in float32, as ``exp2f(l * log2f(per_level_scale)) * base_resolution - 1``: their last
    bit decides how many entries a level has if ``scale_l`` is close to a whole number.

    Source:
        Instant-NGP, section 3 (Müller et al. 2022, arXiv 2201.05989); tiny-cuda-nn, ``encodings/grid.h`` and
        ``grid_scale`` of ``common_device.h``.
    """

    levels: int = 16
    features: int = 2
    log2_table: int = 19
    base_resolution: int = 16
    per_level_scale: float = 1.3819

    @cached_property
    def scales(self) -> tuple[float, ...]:
        """Cells along a side of each level, less one: float32 numbers."""
        # Each function in float64, then rounded: right to the last bit everywhere. Of float32 functions, NumPy's and
        # PyTorch's differ between instruction sets, and C's between libraries.
        growth = np.float32(math.log2(np.float32(self.per_level_scale)))
        powers = [np.float32(2.0 ** float(np.float32(level) * growth)) for level in range(self.levels)]
        return tuple(float(power * np.float32(self.base_resolution) - np.float32(1)) for power in powers)

    @cached_property
    def resolutions(self) -> tuple[int, ...]:
        """Entries along a side of each level."""
        return tuple(math.ceil(scale) + 1 for scale in self.scales)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Entries in each level's table: a multiple of 8, at most ``2**log2_table``."""
        return tuple(min((r**3 + 7) // 8 * 8, 2**self.log2_table) for r in self.resolutions)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """The first entry of each level in the common table, then the number of all entries."""
        offsets = [0]
        for size in self.sizes:
            offsets.append(offsets[-1] + size)
        return tuple(offsets)

    @property
    def entries(self) -> int:
        """Entries of all levels together; the table is (entries, features)."""
        return self.offsets[-1]

    @cached_property
    def hashed(self) -> tuple[bool, ...]:
        """Whether a level is hashed because its ``resolution**3`` entries do not fit its table."""
        return tuple(r**3 > size for r, size in zip(self.resolutions, self.sizes, strict=True))


def implementation(operation: str, device: torch.device, without: str | None = None) -> Callable[..., Any]:
    """The function that computes an operation for tensors on ``device``: its backend's, else the reference.

    Args:
        operation: one of those that ``IMPLEMENTATIONS`` lists.
        device: where its tensors are.
        without: a backend to leave out, which cannot do it for the given arguments.

    Raises:
        UserError: ``NELF_KERNELS`` names a backend that does not exist or cannot run on this device.
    """
    forced = os.environ.get("NELF_KERNELS")
    if forced:
        _check(forced, device)
    # Tracing and exporting need PyTorch operations.
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or torch.onnx.is_in_onnx_export():
        return _function(operation, "reference")
    if forced:
        preferred = (
            _PREFERRED["cuda"][_PREFERRED["cuda"].index(forced) :] if forced in _PREFERRED["cuda"] else (forced,)
        )
    else:
        preferred = _PREFERRED.get(device.type, ())
    for name in preferred:
        if name in IMPLEMENTATIONS[operation] and name != without and (name in (forced, "cpu") or runs(name, device)):
            return _function(operation, name)
    return _function(operation, "reference")


def _check(name: str, device: torch.device) -> None:
    """Refuse a backend in ``NELF_KERNELS`` that does not exist or cannot run on a device."""
    if name not in BACKENDS:
        raise UserError(f"NELF_KERNELS: {name!r} is not a kernel backend; allowed: {', '.join(BACKENDS)}.")
    if name == "cpu" and device.type != "cpu":
        raise UserError(f"NELF_KERNELS=cpu: the tensors are on {device}; use reference there, or trainer=cpu.")
    if name in _PREFERRED["cuda"] and (reason := obstacle(name, device)):
        raise UserError(f"NELF_KERNELS={name}: {reason}.")


@cache
def _function(operation: str, backend: str) -> Callable[..., Any]:
    modules = IMPLEMENTATIONS[operation]
    return getattr(import_module(f"nelf.kernels.{modules.get(backend, 'reference')}"), operation)  # type: ignore[no-any-return]


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 matrices natively, and so faster than float32."""
    if device.type == "cpu":
        # oneDNN also supports x86 processors that can only convert bfloat16, but is slower there than in float32.
        emulated = torch.cpu._is_avx2_supported() and not torch.cpu._is_avx512_bf16_supported()
        return not emulated and torch.ops.mkldnn._is_mkldnn_bf16_supported()  # type: ignore[no-any-return]
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def hash_encode(positions: Tensor, table: Tensor, grid: HashGrid) -> Tensor:
    """Look positions up in a multi-resolution hash grid, trilinearly.

    Args:
        positions: (N, 3) in [0, 1], the unit cube of the grid.
        table: (entries, features) learned features of all levels, level after level.
        grid: the geometry.

    Returns:
        (N, levels * features), level-major. Differentiable in ``table`` and ``positions``.

    Raises:
        ValueError: ``positions`` or ``table`` has another shape.

    Source:
        Instant-NGP, section 3 (arXiv 2201.05989).

    Example:
        One dense level of 2 x 2 x 2 entries; in its middle every corner has a weight of 1/8.

        >>> grid = HashGrid(levels=1, features=1, log2_table=3, base_resolution=2, per_level_scale=1.0)
        >>> table = torch.arange(8.0)[:, None]
        >>> hash_encode(torch.full((1, 3), 0.0), table, grid)  # 0.5 in the grid: half-way between entries
        tensor([[3.5000]])
    """
    if positions.ndim != 2 or positions.shape[1] != 3:
        raise ValueError(f"Expected `positions` to have shape (N, 3), got {tuple(positions.shape)}.")
    if table.shape != (grid.entries, grid.features):
        raise ValueError(f"Expected `table` to have shape {(grid.entries, grid.features)}, got {tuple(table.shape)}.")
    return implementation("hash_encode", positions.device)(positions, table, grid)  # type: ignore[no-any-return]


def space_time_lookup(positions: Tensor, times: Tensor, values: Tensor) -> Tensor:
    """Look positions up in a grid of space and time, linearly in all four.

    Args:
        positions: (N, 3), x first, clamped to [0, 1].
        times: (N,), clamped to [0, 1].
        values: (T, D, H, W, C) at the nodes; node ``i`` of ``n`` along a side lies at ``i / (n - 1)``.

    Returns:
        (N, C). Differentiable in ``values`` alone.

    Raises:
        ValueError: the shapes do not fit together.

    Example:
        Two nodes along x and two moments; the value is 1 at the end of both.

        >>> values = torch.zeros(2, 1, 1, 2, 1)
        >>> values[1, 0, 0, 1] = 1.0
        >>> space_time_lookup(torch.tensor([[0.5, 0.0, 0.0]]), torch.tensor([0.5]), values)
        tensor([[0.2500]])
    """
    if positions.ndim != 2 or positions.shape[1] != 3 or times.shape != positions.shape[:1] or values.ndim != 5:
        raise ValueError(
            f"Expected `positions` (N, 3), `times` (N,) and `values` (T, D, H, W, C), got {tuple(positions.shape)}, "
            f"{tuple(times.shape)}, {tuple(values.shape)}."
        )
    run = implementation("space_time_lookup", positions.device)
    return run(positions.detach(), times.detach(), values)  # type: ignore[no-any-return]


def march(
    rays_o: Tensor,
    rays_d: Tensor,
    t_min: Tensor,
    t_max: Tensor,
    occupied: Tensor,
    *,
    step: float,
    cone: float = 0.0,
    max_step: float = math.inf,
    extent: float = 0.5,
    max_samples: int = 1024,
) -> Samples:
    """Place samples along rays at regular steps, and keep those that fall into occupied cells.

    The lattice of a ray is ``t_0 = t_min``, ``t_{i+1} = t_i + clamp(t_i * cone, step, max_step)``; sample ``i``
    covers ``[t_i, t_{i+1}]`` and is kept if its mid-point lies in an occupied cell and before ``t_max``. For jitter,
    the caller moves ``t_min`` by a fraction of a step.

    Args:
        rays_o: (N, 3) origins.
        rays_d: (N, 3) directions; ``t`` counts multiples of them.
        t_min: (N,) where each lattice starts.
        t_max: (N,) where each ray ends; a ray with ``t_max <= t_min`` gets no sample.
        occupied: (C, G, G, G) bool, indexed [cascade, x, y, z]. Cascade ``c`` covers the cube of half-size
            ``min(2**(c - 1), extent)`` around the origin; a point is looked up in the smallest cascade that holds it
            and whose cells are not smaller than the step there.
        step: the smallest step, > 0.
        cone: growth of the step with ``t``; 0 keeps it constant.
        max_step: the largest step.
        extent: half-size of the outermost cube; points outside are empty.
        max_samples: at most this many samples are kept per ray.

    Returns:
        The kept samples, ragged.

    Raises:
        ValueError: the ray tensors differ in length, or ``occupied`` is not (C, G, G, G).

    Source:
        Instant-NGP, appendix C (arXiv 2201.05989).
    """
    _check_march(rays_o, rays_d, t_min, t_max, occupied)
    run = implementation("march", rays_o.device)
    return Samples(*run(rays_o, rays_d, t_min, t_max, occupied, step, cone, max_step, extent, max_samples))


def march_within(
    rays_o: Tensor, rays_d: Tensor, t_min: Tensor, t_max: Tensor, occupied: Tensor, total: int, **steps: Any
) -> tuple[Samples, Tensor]:
    """March the first rays, as many as have ``total`` samples together; ``triton`` does not wait for the GPU.

    Args:
        rays_o: see ``march``, as the following.
        rays_d: (N, 3).
        t_min: (N,).
        t_max: (N,).
        occupied: (C, G, G, G).
        total: number of samples in the result.
        **steps: the further arguments of ``march``.

    Returns:
        ``total`` samples: those of ``march``, then padding of ray N and length 0. And the number of rays () int64 that
        have theirs; the rays after these have none.

    Raises:
        ValueError: as ``march``.

    Example:
        Two rays with two samples each, of which three may be taken.

        >>> samples, marched = march_within(
        ...     torch.zeros(2, 3), torch.eye(3)[:2], torch.zeros(2), torch.full((2,), 0.2),
        ...     torch.ones(1, 2, 2, 2, dtype=torch.bool), total=3, step=0.1,
        ... )
        >>> samples.ray_indices, marched
        (tensor([0, 0, 2]), tensor(1))
    """
    _check_march(rays_o, rays_d, t_min, t_max, occupied)
    run = implementation("march_within", rays_o.device)
    *samples, marched = run(rays_o, rays_d, t_min, t_max, occupied, total, **{**(march.__kwdefaults__ or {}), **steps})
    return Samples(*samples), marched


def _check_march(rays_o: Tensor, rays_d: Tensor, t_min: Tensor, t_max: Tensor, occupied: Tensor) -> None:
    if occupied.ndim != 4 or not occupied.shape[1] == occupied.shape[2] == occupied.shape[3]:
        raise ValueError(f"Expected `occupied` to have shape (C, G, G, G), got {tuple(occupied.shape)}.")
    n_rays = len(rays_o)
    if rays_d.shape != rays_o.shape or t_min.shape != (n_rays,) or t_max.shape != (n_rays,):
        raise ValueError(
            f"Expected `rays_o`, `rays_d` (N, 3) and `t_min`, `t_max` (N,), got {tuple(rays_o.shape)}, "
            f"{tuple(rays_d.shape)}, {tuple(t_min.shape)}, {tuple(t_max.shape)}."
        )


def composite(
    sigma: Tensor,
    rgb: Tensor,
    t_starts: Tensor,
    t_ends: Tensor,
    ray_indices: Tensor,
    n_rays: int,
    early_stop: float = 0.0,
) -> Composited:
    """Composite ragged samples front to back into one color per ray.

    ``alpha_i = 1 - exp(-sigma_i (t_ends_i - t_starts_i))`` and
    ``weights_i = alpha_i * prod(1 - alpha_j for j before i on the same ray)``.
    The background is not added: that is ``rgb + (1 - opacity)[:, None] * background``.

    Args:
        sigma: (S,) density, per unit of ``t``, >= 0.
        rgb: (S, 3) color in [0, 1].
        t_starts: (S,) where each sample begins, in multiples of ``rays_d``; ascending within a ray.
        t_ends: (S,) where it ends, >= ``t_starts``.
        ray_indices: (S,) int64, the ray of each sample; non-decreasing. A ray may have no sample. Samples of ray N are
            padding: they have to have length 0, and get weight 0.
        n_rays: N, the number of rays.
        early_stop: samples whose transmittance is below this get weight 0.

    Returns:
        ``rgb`` (N, 3); ``opacity`` (N,) in [0, 1]; ``depth`` (N,) = sum of weights * mid-point, in the
        unit of ``t``, 0 for a ray without samples; ``weights`` (S,). Differentiable in ``sigma`` and ``rgb``.

    Raises:
        ValueError: the sample tensors differ in length, or ``ray_indices`` is not sorted or not within the rays;
            ``triton`` does not check the indices, since it would have to wait for the GPU.

    Source:
        NeRF, eq. 3 (Mildenhall et al. 2020, arXiv 2003.08934).

    Example:
        Two samples on ray 0, each letting half the light through; ray 1 is empty.

        >>> half = torch.tensor(2.0).log()
        >>> out = composite(
        ...     sigma=half.expand(2), rgb=torch.eye(3)[:2],
        ...     t_starts=torch.tensor([0.0, 1.0]), t_ends=torch.tensor([1.0, 2.0]),
        ...     ray_indices=torch.tensor([0, 0]), n_rays=2,
        ... )
        >>> out.weights
        tensor([0.5000, 0.2500])
        >>> out.opacity
        tensor([0.7500, 0.0000])
    """
    n_samples = len(sigma)
    if rgb.shape != (n_samples, 3):
        raise ValueError(f"composite: `rgb` has shape {tuple(rgb.shape)}, `sigma` has {n_samples} samples.")
    for name, tensor in (("t_starts", t_starts), ("t_ends", t_ends), ("ray_indices", ray_indices)):
        if tensor.shape != (n_samples,):
            raise ValueError(f"composite: `{name}` has shape {tuple(tensor.shape)}, `sigma` has {n_samples} samples.")
    run = implementation("composite", sigma.device)
    return Composited(*run(sigma, rgb, t_starts, t_ends, ray_indices, n_rays, early_stop))
