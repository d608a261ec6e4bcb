"""The servers of the tests, the arena, and the run's own clock for every benchmark."""

from __future__ import annotations

import os
import subprocess

import pytest

from tests.support.broker import Redis
from tests.support.session import session_broker, started

from .arena import QUICK, ROOT, Arena, Race, replayed_time, selected
from .entries import NAMES

#: Seconds: the first parameter of a benchmark runs all of its implementations.
TIMEOUT = 1800


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes more than a few seconds; not in test-quick")


def pytest_collection_modifyitems(
    session: pytest.Session, config: pytest.Config, items: list[pytest.Item]
) -> None:
    if unnamed := selected(session) - NAMES.keys():
        raise pytest.UsageError(f"bench/entries.py has no label for {', '.join(sorted(unnamed))}")
    for item in items:
        item.add_marker(pytest.mark.benchmark(timer=replayed_time))
        if config.pluginmanager.hasplugin("timeout"):
            item.add_marker(pytest.mark.timeout(TIMEOUT))


def pytest_report_header() -> str:
    size = "quick: small sizes, few rounds" if QUICK else "full"
    return f"fastrpc benchmarks: {size}; figures while running are microseconds per operation"


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_json(config, benchmarks, output_json) -> None:
    """Add the machine and the versions to the report."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    output_json["fastrpc"] = {
        "quick": QUICK,
        "commit": commit.stdout.strip(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory / 2**30, 1),
        "versions": config.stash.get(VERSIONS, {}),
    }


VERSIONS = pytest.StashKey[dict[str, str]]()


@pytest.fixture(scope="session")
def broker():
    with session_broker() as server:
        yield server


@pytest.fixture(scope="session")
def redis_server():
    with started(Redis) as server:
        yield server


@pytest.fixture(scope="session")
def arena(request):
    arena = Arena(request)
    request.config.stash[VERSIONS] = arena.versions
    arena.say_who_is_missing()
    yield arena
    arena.close()


@pytest.fixture
def race(request, benchmark, arena):
    return Race(request, benchmark, arena)
