"""A short storm: one squall of each fixed mix. `make storm` runs longer."""

from __future__ import annotations

import pytest

from tests.storm import storm


@pytest.mark.timeout(600)
def test_exceptions_collections_and_callbacks_that_strike_under_load(private_broker):
    line, well = storm(22, seed=20, url=private_broker.url)
    print(line)
    assert well, line
