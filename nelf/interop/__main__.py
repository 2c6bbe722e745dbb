"""Import and export checkpoints and data of other programs; see ``python -m nelf.interop --help``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from nelf.errors import UserError
from nelf.files import ArgumentParser, escape_output, short

_USAGE = """import and export checkpoints and data of other programs

python -m nelf.interop FILE --to RUN            a checkpoint becomes RUN/teacher or RUN/student
python -m nelf.interop SET --to FOLDER          a pseudo set of MobileR2L becomes a Blender data set
python -m nelf.interop tar MODEL --out FILE     a student becomes a checkpoint of R2L's or MobileR2L's code
python -m nelf.interop poses --scene ROOT --views N --out FILE"""
_MOST, _SEEDS = 100_000, 2**32
_HINT = "what the file does not state; each format takes some of these options"


def main(arguments: list[str] | None = None) -> None:
    """Run one command; a mistake of the user ends with one line and exit code 2."""
    escape_output()
    words = sys.argv[1:] if arguments is None else arguments
    commands = {"poses": _poses, "tar": _tar}
    command = commands.get(words[0]) if words else None
    try:
        command(words[1:]) if command else _convert(words)
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


def _convert(words: list[str]) -> None:
    parser = ArgumentParser(
        prog="python -m nelf.interop", description=_USAGE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    formats = "ngp_pl, MobileR2L, R2L, DyLiN, nerf-pytorch, nerf_pl or D-NeRF"
    parser.add_argument("file", help=f"a checkpoint of {formats}; or a pseudo set")
    parser.add_argument("--to", required=True, help="a run directory; for a pseudo set, the folder to write")
    chosen = parser.add_argument_group(_HINT)
    chosen.add_argument("--radius", type=float, help="distance of the scene's cameras from its origin (ngp_pl)")
    chosen.add_argument(
        "--width", type=_count, help="of the training images, pixels (NeRF, R2L, DyLiN): 400 by default"
    )
    chosen.add_argument("--near", type=float, help="smallest z-depth of samples: 2 by default")
    chosen.add_argument("--far", type=float, help="largest z-depth of samples: 6 by default")
    chosen.add_argument("--background", choices=("white", "black"), help="NeRF: white by default")
    chosen.add_argument("--samples", type=_count, help="coarse samples per ray (NeRF): 64 by default")
    chosen.add_argument("--fine-samples", type=_count, help="fine samples per ray (NeRF): 128 or 64 by default")
    chosen.add_argument("--multires", type=_count, help="frequencies of the embedding (MobileR2L): 6 by default")
    chosen.add_argument("--activation", choices=("gelu", "relu"), help="MobileR2L: the file's, else gelu, by default")
    chosen.add_argument("--residual", type=_yes, metavar="yes|no", help="trained with --use_residual (R2L)")
    still = "no displacement at time 0 (D-NeRF): yes by default"
    chosen.add_argument("--zero-canonical", type=_yes, metavar="yes|no", help=still)
    given = vars(parser.parse_args(words))

    from nelf.interop.recognize import convert  # imports torch, which takes seconds, after the arguments are checked

    file, out = Path(given.pop("file")), Path(given.pop("to"))
    print(convert(file, out, {key: value for key, value in given.items() if value is not None}))


def _tar(words: list[str]) -> None:
    from nelf.interop import mobile_r2l, r2l
    from nelf.lightfields import MobileR2L
    from nelf.storage import load

    parser = ArgumentParser(prog="python -m nelf.interop tar")
    parser.add_argument("model", help="a student's model.safetensors, or its folder")
    parser.add_argument("--out", required=True, help="the file to write, .tar")
    parser.add_argument("--resume", action="store_true", help="for resuming training; else for rendering and export")
    given = parser.parse_args(words)
    network = load(given.model)
    save = mobile_r2l.save_tar if isinstance(network, MobileR2L) else r2l.save_tar
    path = save(network, given.out, given.resume)
    purpose = "resuming training with --resume" if given.resume else "rendering and export"
    print(f"{path}: {type(network).__name__}, for {purpose}")


def _poses(words: list[str]) -> None:
    from nelf.data import read_scene
    from nelf.data.writer import stated
    from nelf.interop.poses import write_poses
    from nelf.paths import POSES, random_cameras

    parser = ArgumentParser(prog="python -m nelf.interop poses")
    parser.add_argument("--scene", required=True, help="a scene in the Blender format, whose cameras are followed")
    parser.add_argument("--views", required=True, type=_count, help="number of views")
    parser.add_argument("--out", required=True, help="the file to write, such as pseudo/transforms_train.json")
    parser.add_argument("--width", type=int, help="of the images, pixels: the scene's by default")
    parser.add_argument("--poses", choices=POSES, default="hemisphere")
    parser.add_argument("--seed", type=_seed, default=0, help="of the random poses")
    given = parser.parse_args(words)
    scene = read_scene(given.scene, width=given.width)
    camera = random_cameras(scene.train.camera, given.views, given.poses, given.seed)
    known: dict[str, Any] = {key: value for key, value in stated(scene).items() if key != "license"}
    path = write_poses(camera, given.out, **known)
    size = f"{camera.width} x {camera.height}"
    print(f"{path}: {given.views} views of {size} pixels, to be rendered as {path.parent}/train/00000.png and so on")
    print(f"Use them as stage.pseudo.root={path.parent}, with the file named transforms_train.json")


def _count(word: str) -> int:
    return _whole(word, 1, _MOST)


def _seed(word: str) -> int:
    return _whole(word, 0, _SEEDS - 1)


def _whole(word: str, least: int, most: int) -> int:
    """A whole number of the command line, from ``least`` to ``most``."""
    if not word.isdecimal() or not len(word) < 20 or not least <= int(word) <= most:
        raise argparse.ArgumentTypeError(f"is {short(word)}; allowed: {least} to {most}")
    return int(word)


def _yes(word: str) -> bool:
    if word not in ("yes", "no"):
        raise argparse.ArgumentTypeError(f"{word!r} is neither yes nor no")
    return word == "yes"


if __name__ == "__main__":
    main()
