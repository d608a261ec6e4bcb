"""A short storm: one squall of each fixed mix, over TCP and over TLS. `make storm` runs longer."""

from __future__ import annotations

import pytest

from tests.storm import started_broker, storm


@pytest.mark.timeout(600)
@pytest.mark.parametrize("tls", [False, True], ids=["tcp", "tls"])
def test_exceptions_collections_and_callbacks_that_strike_under_load(tls):
    with started_broker(tls) as url:
        line, well = storm(22, seed=20, url=url)
    print(line)
    assert well, line
