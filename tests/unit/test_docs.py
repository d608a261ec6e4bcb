"""The documentation names everything that a user can set, read or meet, and no old default."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from fastrpc import errors
from fastrpc.options import Options
from fastrpc.retry import RetryPolicy
from fastrpc.stats import Stats

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
pytestmark = pytest.mark.skipif(not DOCS.exists(), reason="the documentation is not here")

OPTIONS = [field for field in fields(Options) if field.name != "retry_policy"]


def text(page: str) -> str:
    return (DOCS / page).read_text()


@pytest.mark.parametrize("option", OPTIONS + list(fields(RetryPolicy)), ids=lambda o: o.name)
def test_option_and_its_default(option):
    assert f"| `{option.name}` | `{option.default}`" in text("configuration.md")


def test_every_counter():
    now = ("waiting", "unclaimed", "unclaimed_bytes", "evicted", "unconfirmed")
    missing = [k for k in (*Stats().as_dict(), *now) if f"| `{k}` |" not in text("stats.md")]
    assert not missing


def test_every_error():
    page = text("troubleshooting.md")
    assert not [name for name in errors.__all__ if name not in page]
