"""How `--help` lays out what a command says of itself."""

from __future__ import annotations

import argparse

__all__ = ["Paragraphs"]

_WIDEST = 118


class Paragraphs(argparse.HelpFormatter):
    """Fills paragraphs to the width of the terminal; one with indented lines is a table, and stays as it is."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        import textwrap  # as argparse does: only for --help

        return "\n\n".join(
            part if "\n " in part or part.startswith(" ") else textwrap.fill(part, min(width, _WIDEST))
            for part in text.split("\n\n")
        )
