"""`nexttouch doctor`: what works on this machine for this user, and what to do about the rest."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pwd
import shutil
import textwrap

from ..linux.features import Condition, Probe, conditions, probe
from ..live.mechanisms.ways import Way, suffices, ways
from .paragraphs import Paragraphs

__all__ = ["add_parser", "run"]

_DESCRIPTION = """\
Try everything that migrating pages needs, on memory made for the purpose, and say what works for this user. Nothing
is changed. Three tables: the ways to move pages, the kernel interfaces they are made of, and the circumstances that
decide whether moved pages stay where they are. Whatever does not work comes with its cause and a remedy."""

_EPILOG = """\
exit status: 0 if pages can be moved eagerly (eager), when they are touched (rwp or relocate), and lazily in other
processes (rwp or write_protect); 1 if not.

examples:
  nexttouch doctor                 what works for me
  sudo nexttouch doctor            what works for root
  nexttouch doctor --json | jq '.interfaces[] | select(.available | not)'"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to `commands`."""
    parser = commands.add_parser(
        "doctor",
        help="say what works on this machine, and how to get the rest",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=Paragraphs,
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print one JSON object: mechanisms and interfaces (name, purpose, available, reason, remedy), conditions "
        "(name, value, fine, note), and the kernel, machine and user they hold for",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the findings; return 0 if there is a way for every purpose, else 1."""
    interfaces, surroundings = probe(), conditions()
    found = ways(interfaces)
    print(_json(found, interfaces, surroundings) if options.json else _text(found, interfaces, surroundings))
    return 0 if suffices(found) else 1


def _json(found: tuple[Way, ...], interfaces: tuple[Probe, ...], surroundings: tuple[Condition, ...]) -> str:
    host = os.uname()
    answer = {
        "kernel": host.release,
        "machine": host.machine,
        "user": os.geteuid(),
        "mechanisms": [dataclasses.asdict(way) for way in found],
        "interfaces": [dataclasses.asdict(interface) for interface in interfaces],
        "conditions": [dataclasses.asdict(condition) for condition in surroundings],
    }
    return json.dumps(answer)


def _text(found: tuple[Way, ...], interfaces: tuple[Probe, ...], surroundings: tuple[Condition, ...]) -> str:
    host = os.uname()
    parts = [
        f"Linux {host.release} on {host.machine}, as {_user()}",
        _table("ways to move pages", [_row(way) for way in found]),
        _table("kernel interfaces", [_row(interface) for interface in interfaces]),
        _table("circumstances", [_condition_row(condition) for condition in surroundings]),
    ]
    return "\n\n".join(parts)


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return f"user {os.geteuid()}"


def _row(found: Way | Probe) -> tuple[str, str, str, list[str]]:
    remarks = [] if found.available else [f"cause: {found.reason}", f"remedy: {found.remedy}"]
    return "yes" if found.available else "no", found.name, found.purpose, remarks


def _condition_row(found: Condition) -> tuple[str, str, str, list[str]]:
    return "ok" if found.fine else "note", found.name, found.value, [found.note] if found.note else []


def _table(title: str, rows: list[tuple[str, str, str, list[str]]]) -> str:
    width = max(len(name) for _, name, _, _ in rows)
    lines = [title]
    for mark, name, text, remarks in rows:
        lines.append(f"  {mark:<4}  {name:<{width}}  {text}")
        lines += [_indented(remark, width + 10) for remark in remarks]
    return "\n".join(lines)


def _indented(text: str, indent: int) -> str:
    columns = max(shutil.get_terminal_size((100, 24)).columns, indent + 40)
    blank = " " * indent
    return textwrap.fill(text, columns, initial_indent=blank, subsequent_indent=blank + "  ", break_on_hyphens=False)
