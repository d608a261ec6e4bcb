"""The documentation names everything that a user can set, read or meet, and no old default."""

from __future__ import annotations

import re
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


def test_every_reason_of_a_bad_message():
    source = (ROOT / "fastrpc" / "matching.py").read_text()
    reasons = set(re.findall(r'BadMessage\("([^"]+)"', source))
    assert reasons
    for page in ("stats.md", "troubleshooting.md"):
        assert not [reason for reason in reasons if reason not in text(page)]


def test_every_log_line():
    """By its words up to the first that is filled in."""
    page = text("troubleshooting.md")
    lines = []
    for module in (ROOT / "fastrpc").glob("*.py"):
        source = module.read_text()
        lines += re.findall(r'logger\.(?:debug|info|warning|error)\(\s*"([^"]+)"', source)
    assert len(lines) > 10
    told = [max(re.split(r"%[sdgr]", line), key=len).strip(" ,:;(") for line in lines]
    assert not [words for words in told if words not in page]
