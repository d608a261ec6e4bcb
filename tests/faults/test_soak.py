"""A minute of load with all faults; `make soak` runs longer."""

from __future__ import annotations

import pytest

from tests.soak import soak


@pytest.mark.timeout(600)
def test_a_minute_of_load_while_everything_breaks(broker):
    del broker  # its fixture has said what to install where there is none
    line, well = soak(60, seed=20)
    print(line)
    assert well, line
