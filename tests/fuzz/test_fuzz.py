"""Damaged files and wrong commands end in one line, or are obeyed; a few of each here, many in the slow part."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fuzz.cases import Fuzzer
from tests.fuzz.formats import FORMATS
from tests.fuzz.processes import run_cases
from tests.fuzz.words import BASES

FEW, MANY = 8, 400
#: Formats of which an example, or reading it, takes a second.
FEWER = {"ngp_pl": 2, "training": 4}


@pytest.fixture
def fuzzer(request: pytest.FixtureRequest) -> Iterator[Fuzzer]:
    with Fuzzer(request.param) as made:
        yield made


@pytest.mark.parametrize("fuzzer", FORMATS, indirect=True)
def test_a_damaged_file_is_refused_in_one_line(fuzzer: Fuzzer) -> None:
    count = FEWER.get(fuzzer.name, FEW)
    outcomes = [fuzzer.case(number) for number in range(count)]
    assert [each for each in enumerate(outcomes) if each[1][0] == "finding"] == []
    assert any(kind == "refused" for kind, _ in outcomes) or fuzzer.name in FEWER


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_many_damaged_files_are(name: str) -> None:
    assert run_cases(name, FEW, MANY - FEW)[1] == {}


@pytest.mark.slow
def test_good_commands_are_obeyed_and_wrong_ones_refused() -> None:
    assert run_cases("commands", 0, len(BASES) + 100)[1] == {}
