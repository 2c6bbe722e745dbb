"""Command lines that are right, and ways to make them wrong."""

# ruff: noqa: SIM905, words in a line are easier to read than a list of strings

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from random import Random
from typing import Any, NamedTuple

__all__ = ["BASES", "Command", "drawn"]


class Command(NamedTuple):
    """A command line.

    Attributes:
        program: ``train`` or ``distill``, or what follows ``python -m nelf.``
        words: its arguments; words in capitals stand for folders of examples.
        changed: what has been made wrong.
        hopeless: nobody could want it, so it has to be refused.
        late: what is wrong with it shows only when something has been written.
    """

    program: str
    words: list[str]
    changed: str = "nothing"
    hopeless: bool = False
    late: bool = False


_GRID = "levels=2 log2_table=8 finest_resolution=32 hidden=16 grid_resolution=16 max_samples=8 grid_slices=null"
_TINY = {
    "ngp": _GRID,
    "ngp_unbounded": _GRID,
    "dnerf_ngp": _GRID,
    "hyper_ngp": f"{_GRID} warp_width=8 warp_depth=2 ambient_width=8 ambient_depth=2 background_points=8",
    "nerf": "depth=3 width=8 skips=[1] samples=4 fine_samples=4",
    "dnerf": "depth=3 width=8 skips=[2] samples=4 fine_samples=4",
    "mobile_r2l": "width=8 depth=4 points=2 sr_factor=2 sr_kernels=[8]",
    "r2l": "width=8 depth=4 points=2",
    "dylin": "width=8 depth=4 points=2 offset_width=8 offset_depth=2 hyper_width=8 hyper_depth=2 hyper_dim=2",
    "grid_r2l": "width=8 depth=2 resolution=8",
    "grid_r2l_unbounded": "width=8 depth=2 resolution=8 environment=4",
    "grid_dylin": "width=8 depth=2 resolution=8 motion_cells=4 motion_times=4",
}
_STILL, _MOVING = "data=blender data.root=BLENDER", "data=dnerf data.root=DNERF"
_CAPTURE = "data=hypernerf data.root=CAPTURE data.image_scale=1"
_SCENES = {"dnerf": _MOVING, "dnerf_ngp": _MOVING, "dylin": _MOVING, "grid_dylin": _MOVING, "hyper_ngp": _CAPTURE}
_ALL = "stages=[teacher,pseudo,student,finetune,prune,narrow,quantize,export,report]"


def _model(name: str, section: str = "model") -> str:
    """The choice of a model, and what makes it tiny."""
    return " ".join([f"{section.split('.')[0]}={name}", *(f"{section}.{word}" for word in _TINY[name].split())])


def _train(model: str, more: str = "", scene: str = "") -> Command:
    words = f"{scene or _SCENES.get(model, _STILL)} {_model(model)} trainer=cpu run=out {more}"
    return Command("train", words.split())


def _distill(teacher: str, student: str, more: str = "", scene: str = "") -> Command:
    place = scene or _SCENES.get(teacher, _STILL)
    models = f"{_model(teacher, 'teacher.model')} {_model(student)}"
    return Command("distill", f"{place} {models} trainer=cpu run=out {more}".split())


def _other(line: str) -> Command:
    program, *words = line.split()
    return Command(program, words)


_LINES = [
    "render WEIGHTS/ngp.safetensors --scene BLENDER --split test --depth png,npy --out out",
    "render WEIGHTS/ngp.safetensors --scene BLENDER --path orbit --frames 2 --width 12 --out out",
    "render WEIGHTS/ngp.safetensors --scene DNERF --mesh --resolution 8 --threshold 0.5 --device cpu --out out",
    "viewer BUNDLE --no-browser --port 0",
    "interop CHECKPOINTS/nerf.tar --to out --width 16 --near 2 --far 6 --samples 4 --fine-samples 4",
    "interop CHECKPOINTS/r2l.tar --to out --residual yes",
    "interop CHECKPOINTS/mobile.tar --to out --multires 6 --activation gelu",
    "interop tar WEIGHTS/mobile.safetensors --out out.tar",
    "interop poses --scene BLENDER --views 3 --out out.json --seed 3",
]
BASES: list[Command] = [
    *(_train(model) for model in _TINY),
    _train("ngp", scene="data=colmap data.root=COLMAP_TEXT"),
    _train("ngp", scene="data=llff data.root=LLFF data.factor=1 data.ndc=false"),
    _train("nerf", "callbacks=[default,hard_rays] logger=tensorboard", "data=llff data.root=LLFF data.factor=1"),
    _train("r2l", scene="data=r2l_shards data.root=BLENDER data.shards=SHARDS data.shard_width=16"),
    _train("grid_r2l", "callbacks=[default,prune] trainer.max_steps=4"),
    _train("mobile_r2l", "callbacks=[default,quantization_aware]"),
    _distill("ngp", "grid_r2l", f"{_ALL} system.batch_size=1 stage.narrow.round_to=4"),
    _distill("nerf", "mobile_r2l", "stages=[teacher,pseudo,student,report] stage.pseudo.mode=online"),
    _distill("dnerf_ngp", "grid_dylin"),
    *(_other(line) for line in _LINES),
]

_NEVER = ["nan", "inf", "-inf", "1e999"]  # what no key may be
_NUMBERS = [
    *"-1 0 1 2 7 -7 1.5 3.0 -0.0 1e5 1e-30 1e30 1e-320 1e400 -1e400 100000 999999999999 4294967296 2147483648".split(),
    *"1_0 0x10 0b1 +1 1,000 \u0663".split(),
    *("1" + "0" * 30, "9" * 400, "9" * 5000, "[" * 3000),
]
_OTHERS = [
    *"null true false yes auto cpu gpu max gelu none None abc test all int8 \u00e9".split(),
    *"[] {} [1,2] [null] [[1]] {a:1} [nan] {_target_:os.system} {_target_:builtins.dict} [ } ( ' \" a'b a=b".split(),
    *"${seed} ${nothing} ${oc.env:HOME} ${now:%Y} ${ ??? $ %s * - -- # @ a@b 1:2 \\".split(),
    *"/dev/null /etc/passwd ../x ~ . / a/b/c 00:00:00:01 2min -00:00:00:01 99:99:99:99".split(),
    *("", "''", "'x y'", "'nan'", "a" * 300, "a\nb", "\x1b[2J", "\udcff"),
]
_SWEEPS = "1,2 1,abc nan,1 range(1,3) range(3,1) choice(1,2) glob(*) interval(0,1) sort(2,1) 1,".split()
_FLAGS = [
    *"--multirun -m --cfg --cfg=job --resolve --package=x --config-name=x --config-dir=nowhere -- - -x -h".split(),
    *"--config-dir=/dev/null -cd --nothing --help --version --info=x --run".split(),
]
_PLACED = [
    "base=/nowhere",
    "base=.",
    "run=/dev/null/x",
    "run=/proc/x",
    "run=.",
    "stages=teacher",
    "stages=[report,teacher]",
]


def drawn(random: Random, number: int) -> Command:
    """A command with one word that is wrong, or is likely to be; each key of the configuration has its turn."""
    if random.random() < 0.25:
        return _other_words(random, random.choice([base for base in BASES if base.program not in ("train", "distill")]))
    kind = random.randrange(20)
    if kind < 15:
        keys = _keys()
        base, key, value = keys[number % len(keys)]
        return _changed(BASES[base], *_override(random, key, value))
    base = random.choice([index for index, each in enumerate(BASES) if each.program in ("train", "distill")])
    command = BASES[base]
    if kind == 15:
        return _changed(command, random.choice(_FLAGS))
    if kind == 16:
        return _changed(command, random.choice([*_PLACED, *("~" + word for word in command.words)]))
    if kind == 17:  # a choice that there is not, or none
        group = random.choice(
            ["data", "model", "system", "trainer", "callbacks", "logger", "experiment", "launcher", "sweep"]
        )
        return _changed(command, f"{group}={random.choice([*_OTHERS, *_NEVER, *_SWEEPS])}")
    if kind == 18:  # another model's options, or data's
        word = random.choice(random.choice(BASES).words)
        return _changed(command, word)
    return _other_words(random, command)


def _override(random: Random, key: str, value: Any) -> tuple[str, bool]:
    """A word that gives a key another value, and whether no value like it is allowed."""
    kind = random.randrange(24)
    if kind < 2:
        return random.choice(
            [f"+{key}=1", f"++{key}=nan", f"~{key}", key, f"{key}.x=1", f"{key}x=1", f"{key}[0]=1"]
        ), False
    if kind == 2:
        return f"{key}={random.choice(_SWEEPS)}", False
    if kind < 6:
        return f"{key}={random.choice(_NEVER)}", True
    if kind < 14:
        return f"{key}={random.choice(_NUMBERS)}", False
    if kind < 16 and isinstance(value, int | float) and not isinstance(value, bool):
        return (
            f"{key}={random.choice([-value, value * 1000, value / 3, value + 0.5, 10**9 * value, str(value) + 'x'])}",
            False,
        )
    return f"{key}={random.choice(_OTHERS)}", False


def _changed(command: Command, word: str, hopeless: bool = False) -> Command:
    """A command with another word, which takes the place of one for the same key."""
    key = word.partition("=")[0]
    words = [each for each in command.words if each.partition("=")[0] != key]
    return Command(command.program, [*words, word], f"{command.program} {word!r}", hopeless)


def _other_words(random: Random, command: Command) -> Command:
    """A command in which an argument is another, missing, or there twice."""
    words = list(command.words)
    at = random.randrange(len(words))
    kind = random.randrange(8)
    if kind == 0:
        del words[at]
    elif kind == 1:
        words.insert(at, words[at])
    elif kind == 2:
        words.append(
            random.choice(
                [
                    "--nothing",
                    "--width=0",
                    "--time=2",
                    "--motion=time",
                    "--mesh",
                    "--depth=x",
                    "--device=banana",
                    "--device=cuda:7",
                    "x",
                ]
            )
        )
    elif kind == 3:
        words += random.choice(
            [["--frames", "1000000000"], ["--resolution", "1000000000"], ["--seed", "-1"], ["--near", "nan"]]
        )
    else:
        words[at] = random.choice([*_NUMBERS, *_NEVER, *_OTHERS])
    return Command(command.program, words, f"{command.program} {' '.join(words)!r}"[:300], late=True)


@cache
def _keys() -> list[tuple[int, str, Any]]:
    """The keys of all configurations, each class's once: number of the base, key, value; in a fixed order."""
    from omegaconf import OmegaConf

    from nelf.cli.command import config

    found: dict[tuple[str, str], tuple[int, str, Any]] = {}
    for index, base in enumerate(BASES):
        if base.program in ("train", "distill"):
            plain = OmegaConf.to_container(config(base.program, base.words), resolve=False)
            for where, key, value in _leaves(plain, "", base.program):
                found.setdefault((where, key.rpartition(".")[2]), (index, key, value))
    keys = list(found.values())
    Random(0).shuffle(keys)
    return keys


def _leaves(node: Any, path: str, where: str) -> Iterator[tuple[str, str, Any]]:
    """The values of a configuration: the class that takes it, its path, itself."""
    where = str(node.get("_target_", where))
    for key, value in node.items():
        own = f"{path}.{key}".lstrip(".")
        if isinstance(value, dict):
            yield from _leaves(value, own, f"{where} {key}")
        yield where, own, value
