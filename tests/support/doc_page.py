"""Runs the code blocks of one page of the documentation, in order, as a reader would.

    python -m tests.support.doc_page docs/tasks.md '{"broker": "amqp://...", "worker": true}'

The working folder is the reader's project. A block of Python whose first line is a comment with
the name of a file is written to that file, and has to run by itself; all others run in one
namespace, with `await` allowed at the top level. Where the comment after a statement is a value,
such as `# 5` or `# [0, 2, ...]`, the statement has to have it. Commands of a console block are
run, or checked as `Commands` says. A text block is what one of the commands before it has printed,
but for numbers and spaces.

A block that cannot be run has a comment before it, with the reason: `<!-- skip: next "why" -->`.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from unittest import SkipTest

from packaging.requirements import Requirement
from sybil import Document, Example
from sybil.parsers.markdown import CodeBlockParser, SkipParser

from tests.support.commands import Command
from tests.support.processes import ROOT

#: What the pages call the broker.
BROKER = "amqp://guest:guest@localhost//"

#: The project of the pages that show none of their own.
PROJECT = f'''\
from celery import Celery

import fastrpc

fastrpc.install()
app = Celery("proj", broker="{BROKER}", backend="fastrpc://?chords=1")


@app.task
def add(x, y):
    return x + y


@app.task
def leaf(n):
    return n
'''

#: Command -> what is added to it, so that it ends, and soon.
SHORTER = {"bench": "--tasks 20 --rounds 1", "top": "--count 2 --interval 1"}


@dataclass
class Page:
    """What a page needs that its text leaves out.

    `setup` and `check` are Python: what runs ahead of the first block and after the last one.
    `worker`: its blocks need one, and no block starts it. `commands` are run first, for the text
    blocks that show their output; `{port}` is the broker's.
    """

    broker: str = ""
    setup: str = ""
    check: str = ""
    worker: bool = False
    commands: list[str] = field(default_factory=list)


@dataclass
class Report:
    """How many blocks of each kind were run, and why others were not."""

    blocks: dict[str, int] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)


class Commands:
    """What becomes of a command: most are run, as they are or a little shorter.

    `make` is asked what it would do, `pytest` collects, and of what `pip` would install the names
    are read.
    """

    def __init__(self, broker: str) -> None:
        self.broker = broker
        self.outputs: list[str] = []
        self.worker: Command | None = None

    def run(self, command: str) -> None:
        match words := shlex.split(command, comments=True):
            case []:  # a comment that goes on
                pass
            case ["make", *args]:
                self.check_make(args)
            case ["pip", "install", *requirements]:
                self.check_requirements(requirements)
            case [".venv/bin/python", "-m", "pytest", *args]:
                self.call([sys.executable, "-m", "pytest", "--collect-only", "-q", *args], cwd=ROOT)
            case ["celery", "-A", "proj", "worker", *_]:
                self.start_worker(words)
            case ["fastrpc" | "celery" | "rabbitmqctl", *_] | ["python", "-m", "fastrpc", *_]:
                line = shlex.join(words) if "|" not in words else command
                for name, options in SHORTER.items():
                    if name in words and options.split()[0] not in words:
                        line += f" {options}"
                self.call(["bash", "-o", "pipefail", "-c", line.replace(BROKER, self.broker)])
            case _:
                raise AssertionError(f"tests.support.doc_page cannot check the command: {command}")

    def call(self, command: list[str], cwd: Path | None = None, status: int = 0) -> None:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)
        said = f"{command} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
        assert done.returncode == status, said
        self.outputs.append(done.stdout)

    def check_make(self, args: list[str]) -> None:
        """The targets are those that `make help` lists, and the variables exist."""
        text = (ROOT / "Makefile").read_text()
        for arg in args:
            variable, is_one, _ = arg.partition("=")
            known = rf"^{variable} \??=" if is_one else rf"^{arg}:.*## "
            assert re.search(known, text, re.MULTILINE), f"the Makefile has no {arg}"
        self.call(["make", "-n", *args], cwd=ROOT)

    def check_requirements(self, requirements: list[str]) -> None:
        """They can be parsed, and fastrpc has the extras."""
        project = (ROOT / "pyproject.toml").read_text()
        for requirement in map(Requirement, requirements):
            assert requirement.name == "fastrpc"
            for extra in requirement.extras:
                assert re.search(rf"^{extra} = \[", project, re.MULTILINE), extra

    def start_worker(self, command: list[str]) -> None:
        assert self.worker is None, "the page starts two workers"
        self.worker = Command(command, Path("worker.log"))
        self.worker.wait_until_it_consumes(self.broker)

    def close(self) -> None:
        if self.worker is not None:
            self.worker.close()


class Reader:
    """Follows a page."""

    def __init__(self, path: Path, page: Page) -> None:
        self.path, self.page = path, page
        self.commands = Commands(page.broker)
        self.report = Report()
        self.loop = asyncio.new_event_loop()
        self.namespace: dict = {}

    def read(self) -> Report:
        if not Path("proj.py").exists():
            Path("proj.py").write_text(PROJECT)
        document = Document.parse(
            str(self.path),
            CodeBlockParser("python", self.counted(self.python)),
            CodeBlockParser("console", self.counted(self.console)),
            CodeBlockParser("text", self.counted(self.sample)),
            SkipParser(),
        )
        try:
            self.prepare()
            for example in document.examples():
                try:
                    example.evaluate()
                except SkipTest as reason:
                    self.report.skipped.append(str(reason))
            self.execute(self.page.check, "check")
        finally:
            self.commands.close()
        return self.report

    def prepare(self) -> None:
        self.execute(self.page.setup, "set-up")
        for command in self.page.commands:
            port = re.search(r":(\d+)/", self.page.broker)[1]
            line = command.format(port=port)
            self.commands.call(["bash", "-c", line], status=1 if "doctor" in line else 0)

    def counted(self, evaluate: Callable[[Example], None]) -> Callable[[Example], None]:
        def count_and_evaluate(example: Example) -> None:
            name = evaluate.__name__
            self.report.blocks[name] = self.report.blocks.get(name, 0) + 1
            evaluate(example)

        return count_and_evaluate

    def python(self, example: Example) -> None:
        source = example.parsed
        if file := re.match(r"# (\w+\.py)\n", source):
            Path(file[1]).write_text(source)
            self.commands.call([sys.executable, file[1]])
            return
        self.need_worker()
        self.execute("\n" * (example.line + source.line_offset) + source, example.path)

    def console(self, example: Example) -> None:
        for line in example.parsed.splitlines():
            if "celery -A proj worker" not in line:
                self.need_worker()
            self.commands.run(line)

    def sample(self, example: Example) -> None:
        wanted = shape(example.parsed)
        outputs = "\n---\n".join(map(shape, self.commands.outputs))
        assert wanted in outputs, f"no command printed\n{wanted}\nbut\n{outputs}"

    def need_worker(self) -> None:
        if self.page.worker and self.commands.worker is None:
            options = "-P solo -n celery@host -l warning"
            self.commands.start_worker(shlex.split(f"celery -A proj worker {options}"))

    def execute(self, source: str, name: str) -> None:
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        tree = with_values(source, name)
        self.namespace["agrees"] = agrees
        code = compile(tree, name, "exec", flags, dont_inherit=True)
        running = eval(code, self.namespace)
        if inspect.iscoroutine(running):
            self.loop.run_until_complete(running)


def with_values(source: str, name: str) -> ast.Module:
    """The source, with `assert agrees(VALUE, COMMENT)` for statements followed by a value."""
    tree = ast.parse(source, name)
    lines = source.splitlines()
    for position, node in reversed(list(enumerate(tree.body))):
        comment = re.search(r"  # (.+)$", lines[node.end_lineno - 1])
        if comment is None or not isinstance(node, (ast.Expr, ast.Assign)):
            continue
        try:
            ast.literal_eval(comment[1])
        except (ValueError, SyntaxError):
            continue  # a comment in words
        value = node.value
        if isinstance(node, ast.Assign):
            value = ast.Name(node.targets[0].id, ast.Load())
            position += 1
            tree.body.insert(position, node)
        call = ast.parse(f"agrees(0, {comment[1]})", mode="eval").body
        call.args[0] = value
        tree.body[position] = ast.copy_location(ast.Assert(call), node)
    return ast.fix_missing_locations(tree)


def agrees(value: object, told: object) -> bool:
    """Whether a value is what a page tells of it: `[0, 2, ...]` is the beginning of a list."""
    if isinstance(told, list) and told[-1:] == [...]:
        value, told = value[: len(told) - 1], told[:-1]
    assert value == told, f"{value!r} is not {told!r}"
    return True


def shape(text: str) -> str:
    """The text with `#` for each number or ellipsis, one space for many, and no ends of lines."""
    return " ".join(re.sub(r"-?\d[\d,.]*|\.\.\.", "#", text).split())


def main(path: str, page: str) -> None:
    sys.path.insert(0, os.getcwd())
    report = Reader(Path(path), Page(**json.loads(page))).read()
    print(json.dumps(asdict(report)))


if __name__ == "__main__":
    main(*sys.argv[1:])
