"""README.md and docs/, read for what a test can hold against the project: blocks, commands, links."""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from helpers.project import PROJECT

PAGES = (PROJECT / "README.md", PROJECT / "SECURITY.md", *sorted((PROJECT / "docs").rglob("*.md")))

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_LINK = re.compile(r"\]\(([^)\s]+)\)")

# The shell itself takes a block apart, loops and all. It finds no program, so that each call ends in the handler.
_RECORDER = r"""
set -eu
command_not_found_handle() {
  local call sent
  if [[ " $* " == *" @- "* ]]; then IFS= read -r -d '' sent || true; set -- "$@" "$sent"; fi  # what a pipe gives it
  printf -v call '%s\037' "$@"
  printf '%s\036' "$call" >> calls  # in one write: the programs of a pipe call at the same time
}
source() { command_not_found_handle source "$@"; }
"""


@dataclass(frozen=True)
class Call:
    """A program and its arguments, as a page has the shell call it.

    Attributes:
        mentioned: named in a line of text, without options: it may lack the arguments that it takes.
    """

    page: str
    words: tuple[str, ...]
    mentioned: bool = False

    def __str__(self) -> str:
        return f"{self.page}: {' '.join(self.words)}"


def name(page: Path) -> str:
    return page.relative_to(PROJECT).as_posix()


def blocks(page: Path) -> list[tuple[str, str]]:
    """(language, text) of the fenced blocks."""
    return _FENCE.findall(page.read_text(encoding="utf-8"))


def links(page: Path) -> list[str]:
    """Targets within the project."""
    found = _LINK.findall(_INLINE.sub("", _without_blocks(page)))
    return [link for link in found if not re.match(r"[a-z]+:", link)]


def anchors(page: Path) -> set[str]:
    """What the headings are called in an address, on GitHub and in the built pages."""
    headings = re.findall(r"^#+ (.+)$", _without_blocks(page), re.MULTILINE)
    return {re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", heading.lower())) for heading in headings}


@cache
def calls(programs: frozenset[str]) -> list[Call]:
    """Every call in a block of shell, and in a line of text those of the programs; each once, where it stands first."""
    found: dict[tuple[tuple[str, ...], bool], Call] = {}
    for page in PAGES:
        in_blocks = [words for language, text in blocks(page) if language == "sh" for words in taken_apart(text)]
        in_text = [words for span in _spans(page, programs) for words in taken_apart(span)]
        mentioned = [not any(word.startswith("-") for word in words) for words in in_text]
        for words, mention in zip([*in_blocks, *in_text], [False] * len(in_blocks) + mentioned, strict=True):
            found.setdefault((words, mention), Call(name(page), words, mention))
    return list(found.values())


def _spans(page: Path, programs: frozenset[str]) -> list[str]:
    """Code in lines of text that calls one of the programs; a program's bare name is no call."""
    found = []
    for span in _INLINE.findall(_without_blocks(page)):
        command = f"make run {span}" if span.startswith(("SET=", "EXPERIMENT=")) else span.replace(r"\|", "|")
        first, *others = command.removeprefix(".venv/bin/").split()
        if first in programs and others:
            found.append(command)
    return found


def taken_apart(text: str) -> list[tuple[str, ...]]:
    """The calls that the shell would make."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "docs").symlink_to(PROJECT / "docs")
        Path(folder, "PHOTO").touch()
        Path(folder, "calls").touch()
        subprocess.run(
            ["/bin/bash", "-c", _RECORDER + text.replace(".venv/bin/", "")],
            cwd=folder,
            env={"PATH": "/nowhere", "LC_ALL": "C.UTF-8"},
            check=True,
        )
        records = Path(folder, "calls").read_text(encoding="utf-8").split("\x1e")[:-1]
    return [tuple(record.split("\x1f")[:-1]) for record in records]


def _without_blocks(page: Path) -> str:
    return _FENCE.sub("", page.read_text(encoding="utf-8"))
