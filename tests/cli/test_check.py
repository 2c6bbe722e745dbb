"""Values are compared with the annotations of the arguments that they become, wherever those are written."""

from __future__ import annotations

import importlib
import inspect
import math
from typing import Literal

import pytest

from nelf.arguments import parameters
from nelf.cli.check import check_letters, check_types
from nelf.errors import Count, Share, UserError

BASE = """
from __future__ import annotations
from typing import TYPE_CHECKING, Literal
from nelf.errors import Count, Share
if TYPE_CHECKING:
    from elsewhere import Field
Mode = Literal["fast", "slow"]
class Base:
    def __init__(self, mode: Mode = "fast", rays: Count | None = None, part: Share = 1.0, untold=3): ...
"""
CHILD = """
from __future__ import annotations
import functools, typing
from nelf_test_base import Base
if typing.TYPE_CHECKING:
    from elsewhere import Field
class Child(Base):
    def __init__(self, field: Field | None, width: int = 1, **options: object): ...
def passed_on(function):
    @functools.wraps(function)
    def run(*rest, **options):
        return function(*rest, **options)
    return run
"""
WRAPPED = """
from __future__ import annotations
from nelf_test_child import passed_on
from nelf_test_base import Mode
@passed_on
def run(mode: Mode): ...
"""


@pytest.fixture(autouse=True)
def modules(tmp_path, monkeypatch) -> None:
    for name, text in (("base", BASE), ("child", CHILD), ("wrapped", WRAPPED)):
        (tmp_path / f"nelf_test_{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()


@pytest.mark.parametrize(
    "word", ["9" * 5000, "[" * 3000, "{a:" * 200, "\udcff", "a\nb"], ids=["digits", "lists", "nests", "bytes", "lines"]
)
def test_what_ends_hydra_s_parser_is_refused_before(word: str) -> None:
    with pytest.raises(UserError, match=r"^system\.lr: has control characters, or very many digits or brackets; "):
        check_letters(["seed=1", f"system.lr={word}"])
    check_letters(["data.root=/déjà vu/データ", "model.skips=[1,2,[3,4]]", "system.lr=1e-3"])


def test_annotations_are_looked_up_where_they_are_written() -> None:
    child = importlib.import_module("nelf_test_child").Child
    found = {name: each.annotation for name, each in parameters(child).items()}
    assert found == {
        "field": "Field | None",  # exists for type checkers only, and leaves the others as they are
        "width": int,
        "mode": Literal["fast", "slow"],
        "rays": Count | None,
        "part": Share,
        "untold": inspect.Parameter.empty,
    }
    wrapped = importlib.import_module("nelf_test_wrapped").run
    assert parameters(wrapped)["mode"].annotation == Literal["fast", "slow"]


@pytest.mark.parametrize("values", [{"field": 5}, {"field": None, "untold": "x"}, {"rays": None, "mode": "slow"}])
def test_what_fits_or_cannot_be_judged_is_accepted(values: dict[str, object]) -> None:
    check_types({"_target_": "nelf_test_child.Child", **values})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mode": "quick"}, r"model\.mode: is 'quick'; allowed: fast, slow"),
        ({"rays": 1.5}, r"model\.rays: is 1\.5; allowed: a whole number of 1 or more, null"),
        ({"rays": 0}, r"model\.rays: is 0; allowed: a whole number of 1 or more, null"),
        ({"part": 1.5}, r"model\.part: is 1\.5; allowed: a number from 0 to 1"),
        ({"part": math.nan}, r"model\.part: is nan; allowed: a number from 0 to 1"),
        ({"part": -math.inf}, r"model\.part: is -inf; allowed: a number from 0 to 1"),
        ({"width": 2**63}, r"model\.width: is 9223372036854775808; allowed: a whole number"),
        ({"part": 10**400}, r"model\.part: is a whole number of very many digits; allowed: a number from 0 to 1"),
        ({"width": True}, r"model\.width: is True; allowed: a whole number"),
    ],
)
def test_what_does_not_fit_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_types({"model": {"_target_": "nelf_test_child.Child", "field": None, **values}})
