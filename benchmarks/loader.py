"""Time reading ray batches from disk in one process, and write a table and JSON.

    python benchmarks/loader.py [--views 100] [--pixels 400] [--batch 81920] [--batches 20] [--repeats 3] [--out PATH]

``shuffled file`` is what ray-based students read: pixels in random order, with rays computed from the poses.
``random pixels`` draws from a memory map of the images, view by view; ``files of 4096 rays`` is what R2L's code reads:
origins, directions and colors in 32 bits, twenty files a batch, one ``numpy.load`` each. All take turns, so that load
on the machine affects all of them equally; ``cold`` starts with none of the files in the page cache.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from _machine import RESULTS, write  # before torch, since it says how idle threads wait

# isort: split
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler

from nelf.cameras import Camera
from nelf.data import Split
from nelf.data.batches import sample_rays
from nelf.data.ray_cache import shuffled
from nelf.paths import random_r2l

RAYS = 4096  # in each of R2L's files
GROUP = 100  # views whose rays R2L shuffles together


class RayFiles(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """R2L's data set: each item is one file of rays."""

    def __init__(self, folder: Path) -> None:
        self.files = sorted(folder.glob("*.npy"))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        rays = torch.from_numpy(np.load(self.files[index]))
        return rays[:, 0:3], rays[:, 3:6], rays[:, 6:9]


def views(count: int, pixels: int) -> Split:
    """Opaque images of random colors; their content does not affect the times."""
    c2w, _ = random_r2l(count, 4.0)
    images = np.full((count, pixels, pixels, 4), 255, np.uint8)
    images[..., :3] = np.random.default_rng(0).integers(256, size=(1, pixels, pixels, 3), dtype=np.uint8)
    return Split(Camera.from_fov(c2w, 0.69, pixels, pixels), images, [str(view) for view in range(count)])


def write_files(split: Split, folder: Path) -> None:
    """Write views as R2L does: the rays of a hundred views shuffled, in files of 4096."""
    written, rng = 0, np.random.default_rng(0)
    for first in range(0, len(split), GROUP):
        part = slice(first, first + GROUP)
        rays = split.camera[part].rays()
        colors = torch.from_numpy(split.images[part][..., :3]).float() / 255
        table = torch.cat([rays.origins, rays.directions, colors], -1).reshape(-1, 9).numpy()
        rng.shuffle(table)
        for start in range(0, len(table) - RAYS + 1, RAYS):
            np.save(folder / f"data_{written}.npy", table[start : start + RAYS])
            written += 1


def anonymous() -> float:
    """Anonymous resident memory of this process, which excludes mapped files, MB."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon")) / 1e3


def forget(files: Iterable[Path]) -> None:
    """Ask the system to drop the files from the page cache."""
    for path in files:
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


class Ways:
    """The ways to draw batches from views stored in a folder; each call starts afresh.

    Args:
        folder: where the views are written in each form.
        split: the views.
        batch: rays in a batch.
        batches: number of batches.
    """

    def __init__(self, folder: Path, split: Split, batch: int, batches: int) -> None:
        self.folder, self.camera, self.names = folder, split.camera, split.names
        self.batch, self.batches = batch, batches
        (folder / "files").mkdir()
        shuffled(views(1, 8), folder, "to compile").rays(0, 8, 0)
        self.seconds = {
            "shuffled file": _busy(lambda: shuffled(split, folder, "all")),
            "random pixels": _busy(lambda: np.save(folder / "images.npy", split.images)),
            "files of 4096 rays": _busy(lambda: write_files(split, folder / "files")),
        }
        self.files = {
            "shuffled file": [shuffled(split, folder, "all").file.path],
            "random pixels": [folder / "images.npy"],
            "files of 4096 rays": sorted((folder / "files").iterdir()),
        }

    def _split(self) -> Split:
        return Split(self.camera, np.load(self.folder / "images.npy", mmap_mode="r"), self.names)

    def draw(self, name: str) -> Iterator[object]:
        """All batches, one after the other."""
        if name == "shuffled file":
            rays = shuffled(self._split(), self.folder, "all")
            yield from (rays.rays(index * self.batch, self.batch, 0) for index in range(self.batches))
        elif name == "random pixels":
            split = self._split()
            yield from (sample_rays(split, self.batch, np.random.default_rng(index)) for index in range(self.batches))
        else:
            files = RayFiles(self.folder / "files")
            sampler = RandomSampler(files, num_samples=self.batches * self.batch // RAYS)
            yield from DataLoader(files, batch_size=self.batch // RAYS, sampler=sampler)

    def timed(self, name: str) -> tuple[float, float, float]:
        """Draw all batches; return wall-clock seconds, CPU seconds, and the peak increase in anonymous memory, MB."""
        before, most = anonymous(), 0.0
        wall, busy = time.perf_counter(), time.process_time()
        for _ in self.draw(name):
            most = max(most, anonymous())
        return time.perf_counter() - wall, time.process_time() - busy, most - before


def _busy(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> None:
    """Write views in each form, then draw from all forms in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--views", type=int, default=100)
    parser.add_argument("--pixels", type=int, default=400)
    parser.add_argument("--batch", type=int, default=20 * RAYS, help="rays, in whole files of 4096")
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS / "loader.json")
    options = parser.parse_args()
    torch.set_num_threads(1)

    found: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        ways = Ways(Path(temporary), views(options.views, options.pixels), options.batch, options.batches)
        sizes = {name: sum(file.stat().st_size for file in files) for name, files in ways.files.items()}
        for _ in range(options.repeats):
            for name, files in ways.files.items():
                forget(files)
                for state in ("cold", "warm"):
                    found.setdefault((name, state), []).append(ways.timed(name))

    rows = []
    rays = options.batch * options.batches
    for (name, state), times in found.items():
        wall, busy, memory = (statistics.median(column) for column in zip(*times, strict=True))
        rows.append(
            {
                "from": name,
                "files": state,
                "million_rays_per_second": round(rays / wall / 1e6, 2),
                "cpu_seconds_per_million_rays": round(busy / rays * 1e6, 3),
                "anonymous_mb": round(memory, 1),
                "bytes_per_ray": round(sizes[name] / options.views / options.pixels**2, 1),
                "cpu_seconds_to_write": round(ways.seconds[name], 2),
            }
        )
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    Console(width=160).print(table)
    write(options.out, rows=rows)


if __name__ == "__main__":
    main()
