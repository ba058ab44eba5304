"""The measurements behind docs/performance.md: `python -m bench --help`, run from the project's directory.

Both sides of every ratio are measured in the same run, in turn, several times. Each figure is kept with its floor, its
spread and the machine it was measured on.
"""
