"""Damaged files of every format end in one line, or are read; a few of each here, many in the slow part."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fuzz.cases import TYPED, Fuzzer
from tests.fuzz.formats import FORMATS

FEW, MANY = 8, 400
COMPOSED = 3  # of command lines, each of which Hydra composes


@pytest.fixture
def fuzzer(request: pytest.FixtureRequest) -> Iterator[Fuzzer]:
    with Fuzzer(request.param) as made:
        yield made


@pytest.mark.parametrize("fuzzer", FORMATS, indirect=True)
def test_a_damaged_file_is_refused_in_one_line(fuzzer: Fuzzer) -> None:
    count = COMPOSED if fuzzer.name == TYPED else FEW
    outcomes = [fuzzer.case(number) for number in range(count)]
    assert [each for each in enumerate(outcomes) if each[1][0] == "finding"] == []
    assert any(kind == "refused" for kind, _ in outcomes) or fuzzer.name == TYPED


@pytest.mark.slow
@pytest.mark.parametrize("fuzzer", FORMATS, indirect=True)
def test_many_damaged_files_are(fuzzer: Fuzzer) -> None:
    outcomes = [fuzzer.case(number) for number in range(FEW, MANY)]
    assert [each for each in enumerate(outcomes, FEW) if each[1][0] == "finding"] == []
