"""The documentation names each option, counter, error and log line, with the current defaults."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import fastrpc
from fastrpc import aio, doctor, errors
from fastrpc.contrib import opentelemetry, prometheus
from fastrpc.options import Options
from fastrpc.retry import RetryPolicy
from fastrpc.stats import CHORDS, RECEIVED, SENT

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
pytestmark = pytest.mark.skipif(not DOCS.exists(), reason="the documentation is not here")

DEFAULTS = {**Options()._asdict(), **RetryPolicy()._asdict()}
del DEFAULTS["retry_policy"]


def text(page: str) -> str:
    return (DOCS / page).read_text()


@pytest.mark.parametrize("option", DEFAULTS)
def test_option_and_its_default(option):
    assert f"| `{option}` | `{DEFAULTS[option]}`" in text("configuration.md")


def test_every_counter():
    names = (*RECEIVED, *SENT, *CHORDS)
    missing = [name for name in names if f"| `{name}` |" not in text("stats.md")]
    assert not missing


def test_every_check_of_the_doctor():
    page = text("doctor.md")
    checks = [*doctor.NODE_CHECKS, *doctor.BROKER_CHECKS, *doctor.APP_CHECKS]
    assert len(checks) > 20
    assert not [check.name for check in checks if f"`{check.name}`" not in page]


def test_every_page_is_in_the_navigation_and_in_llms_txt():
    pages = {path.name for path in DOCS.glob("*.md")}
    assert {p for p in pages if p in (ROOT / "mkdocs.yml").read_text()} == pages
    assert set(re.findall(r"\]\(([\w-]+\.md)\)", text("llms.txt"))) == pages


def test_every_public_name_is_in_the_api_reference():
    page = text("api.md")
    for module in (errors, aio):
        assert f"::: {module.__name__}\n" in page
    for name in set(fastrpc.__all__) - set(errors.__all__):
        assert f"fastrpc.{name}\n" in page
    for module in (prometheus, opentelemetry):
        for name in module.__all__:
            assert f"::: {module.__name__}.{name}\n" in page


def test_every_error():
    page = text("troubleshooting.md")
    assert not [name for name in errors.__all__ if name not in page]


def test_every_reason_of_a_bad_message():
    source = (ROOT / "fastrpc" / "client" / "matcher.py").read_text()
    reasons = set(re.findall(r'BadMessage\("([^"]+)"', source))
    assert reasons
    for page in ("stats.md", "troubleshooting.md"):
        assert not [reason for reason in reasons if reason not in text(page)]


def test_every_log_line():
    """Compared by the longest part without a placeholder."""
    page = text("troubleshooting.md")
    lines = []
    for module in (ROOT / "fastrpc").rglob("*.py"):
        source = module.read_text()
        lines += re.findall(r'logger\.(?:debug|info|warning|error)\(\s*"([^"]+)"', source)
    assert len(lines) > 10
    told = [max(re.split(r"%[sdgr]", line), key=len).strip(" ,:;(") for line in lines]
    assert not [words for words in told if words not in page]


PROMISES = re.findall(
    r"^\| (.+?) \| .+ \| (`.+`) \|$",
    text("promises.md").partition("What is not promised")[0] if DOCS.exists() else "",
    re.MULTILINE,
)


def test_every_promise_names_its_tests():
    table = text("promises.md").partition("What is not promised")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")]
    assert len(rows) - 1 == len(PROMISES) > 10  # but for the head


@pytest.mark.parametrize(
    "tests", [tests for _, tests in PROMISES], ids=[row for row, _ in PROMISES]
)
def test_the_tests_of_a_promise_exist(tests):
    for test in re.findall(r"`([^`]+)`", tests):
        path, *names = test.split("::")
        node: ast.AST = ast.parse((ROOT / "tests" / path).read_text())
        for name in names:
            named = [n for n in ast.iter_child_nodes(node) if getattr(n, "name", "") == name]
            assert named, f"{test} is promised, and is not there"
            node = named[0]
