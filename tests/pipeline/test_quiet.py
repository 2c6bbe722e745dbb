"""Lightning is quiet where it is meant to be, and nothing else is, nor afterwards."""

from __future__ import annotations

import logging
import warnings

import pytest

from nelf.pipeline.quiet import quiet_lightning

EXPECTED = "The 'val_dataloader' does not have many workers which may be a bottleneck. Consider more."


@pytest.fixture
def state():
    """The filters of this process, and the levels of Lightning's loggers."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "pytorch_lightning.utilities.rank_zero")]
    for logger in loggers:
        logger.setLevel(logging.INFO)
    yield lambda: (list(warnings.filters), [logger.level for logger in loggers])
    for logger in loggers:
        logger.setLevel(logging.NOTSET)


def test_only_what_is_expected_is_silent(state) -> None:
    before = state()
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        with quiet_lightning():
            assert not logging.getLogger("pytorch_lightning").isEnabledFor(logging.INFO)
            assert logging.getLogger("pytorch_lightning").isEnabledFor(logging.WARNING)
            warnings.warn(EXPECTED, stacklevel=1)
            warnings.warn("The loss is not a number.", stacklevel=1)
        warnings.warn(EXPECTED, stacklevel=1)
    assert [str(each.message) for each in heard] == ["The loss is not a number.", EXPECTED]
    assert state() == before


def test_a_function_that_fails_leaves_nothing_behind(state) -> None:
    @quiet_lightning()
    def fail() -> None:
        raise KeyboardInterrupt

    before = state()
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            fail()
        assert state() == before
