"""`python -m bench`: measure, print, save."""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from nexttouch.errors import InvalidArgument, LabError, NexttouchError

from .suite import SUITE, Results, needs_lab, run, run_in_lab
from .table import render

__all__ = ["main"]

_RESULTS = Path(__file__).parent / "results"
_EXAMPLES = "measurements:\n" + "\n".join(f"  {name:8}{entry.summary}" for name, entry in SUITE.items())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 0, or 1 if something could not be measured, 2 for misuse."""
    options = _parser().parse_args(arguments)
    try:
        results, missing = _measure(options)
    except NexttouchError as error:
        _tell(str(error))
        return error.exit_code
    sys.stdout.write(render(results))
    for name, reason in missing.items():
        print(f"{name}: NOT MEASURED: {reason}")
    _save(results, missing, options.json)
    return 1 if missing else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measure what nexttouch costs; print it with the floors; save it with what the machine is.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="what to measure (default: everything)")
    parser.add_argument("--repetitions", type=int, metavar="N", help="measure each N times (default: 5 to 11)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to save it (default: bench/results/DATE.json)")
    parser.add_argument(
        "--where",
        default="here",
        metavar="NAME",
        help="what the results call this machine; any name but `here` also means that no virtual machine is started",
    )
    return parser


def _measure(options: argparse.Namespace) -> tuple[Results, dict[str, str]]:
    names = _check(options.names, options.repetitions)
    elsewhere = [name for name in names if options.where == "here" and needs_lab(name)]
    here = [name for name in names if name not in elsewhere]
    results, missing = run(here, options.repetitions, options.where, _tell), {}
    if elsewhere:
        try:
            lab = run_in_lab(elsewhere, options.repetitions, _tell)
            results = Results(results.machines | lab.machines, results.figures + lab.figures)
        except LabError as error:
            missing = dict.fromkeys(elsewhere, str(error))
    return results, missing


def _check(names: list[str], repetitions: int | None) -> list[str]:
    for name in names:
        if name not in SUITE:
            raise InvalidArgument("NAME", f"is {name!r}, but has to be one of {', '.join(SUITE)}")
    if repetitions is not None and repetitions < 1:
        raise InvalidArgument("--repetitions", f"is {repetitions}, but has to be at least 1")
    return [name for name in SUITE if name in names or not names]


def _save(results: Results, missing: dict[str, str], file: Path | None) -> None:
    now = datetime.datetime.now().astimezone()
    if file is None:
        _RESULTS.mkdir(exist_ok=True)
        file = _RESULTS / f"{now:%Y-%m-%dT%H%M%S}.json"
    written = {"date": now.isoformat(timespec="seconds")} | results.to_dict() | {"missing": missing}
    file.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    _tell(f"saved {file}")


def _tell(line: str) -> None:
    print(f"bench: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
