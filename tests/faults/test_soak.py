"""Short loads with all faults; `make soak` and `make soak-tasks` run longer."""

from __future__ import annotations

import pytest

from tests.soak import soak
from tests.soak_tasks import soak as soak_tasks


@pytest.mark.timeout(600)
def test_a_minute_of_load_while_everything_breaks(broker):
    del broker  # its fixture has said what to install where there is none
    line, well = soak(60, seed=20)
    print(line)
    assert well, line


@pytest.mark.timeout(600)
def test_tasks_and_chords_while_everything_breaks(broker):
    del broker
    line, well = soak_tasks(25, seed=20, pauses=(5, 6))
    print(line)
    assert well, line
