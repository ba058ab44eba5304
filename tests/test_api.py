"""The contract of the package: its names, that each is told about once, and that what the text promises is there."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import pkgutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import nexttouch as nt
from nexttouch import errors

ROOT = Path(str(nt.__file__)).parent

# Interpreters run these as programs.
PROGRAMS = {"nexttouch.__main__", "nexttouch.demo.subject"}

MODULES = sorted(
    {name for _, name, _ in pkgutil.walk_packages([str(ROOT)], "nexttouch.")} - PROGRAMS - {"nexttouch._core"}
)


@pytest.fixture(params=MODULES)
def module(request: pytest.FixtureRequest) -> ModuleType:
    return importlib.import_module(request.param)


def tree(found: ModuleType) -> ast.Module:
    return ast.parse(Path(str(found.__file__)).read_text(encoding="utf-8"))


def public(found: ModuleType) -> set[str]:
    """Names of the functions, classes and documented constants that a module defines."""
    body, names = tree(found).body, set()
    for node, following in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        documented = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        names |= {target.id for target in targets if isinstance(target, ast.Name) and documented}
    return {name for name in names if not name.startswith("_")}


# ---- The package --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", nt.__all__)
def test_every_name_exists(name: str) -> None:
    assert getattr(nt, name) is getattr(nt, name)
    assert getattr(nt, name).__module__.startswith("nexttouch.")


def test_names_are_sorted_and_told_once() -> None:
    assert [name for name, count in Counter(nt.__all__).items() if count > 1] == []
    assert list(nt.__all__) == sorted(nt.__all__)
    assert set(nt._HOMES) <= set(nt.__all__)


@pytest.mark.parametrize("name", nt._HOMES)
def test_lazy_names_come_from_where_they_are_defined(name: str) -> None:
    home = importlib.import_module(f"nexttouch.{nt._HOMES[name]}")
    assert getattr(nt, name) is getattr(home, name)
    assert getattr(nt, name).__module__ == home.__name__
    assert name in home.__all__


def test_type_checkers_see_the_same_names() -> None:
    checked = next(node for node in tree(nt).body if isinstance(node, ast.If))
    names = {alias.name for part in checked.body if isinstance(part, ast.ImportFrom) for alias in part.names}
    assert names == set(nt._HOMES)


def test_every_error_is_a_name_of_the_package() -> None:
    assert set(errors.__all__) <= set(nt.__all__)


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match=r"^module 'nexttouch' has no attribute 'migrate'$"):
        _ = nt.migrate


def test_completion_offers_names_that_were_not_used_yet() -> None:
    code = "import nexttouch as nt; print(*set(nt.__all__).difference(dir(nt)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == []


def test_star_imports_all_of_it() -> None:
    code = "from nexttouch import *; print(*sorted(name for name in dir() if not name.startswith('_')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == sorted(nt.__all__)


@pytest.mark.parametrize("name", nt.__all__)
def test_every_name_is_documented(name: str) -> None:
    thing = getattr(nt, name)
    assert inspect.getdoc(thing)
    if inspect.isfunction(thing):
        assert "Raises:" in str(inspect.getdoc(thing)), "a function of the package says what it raises"


@pytest.mark.parametrize("name", [name for name in nt.__all__ if inspect.isclass(getattr(nt, name))])
def test_every_public_method_is_documented(name: str) -> None:
    kind = getattr(nt, name)
    for attribute, value in vars(kind).items():
        if not attribute.startswith("_") and (inspect.isfunction(value) or isinstance(value, property | staticmethod)):
            assert inspect.getdoc(value), f"{name}.{attribute}"


@pytest.mark.parametrize("name", [name for name in nt.__all__ if inspect.isfunction(getattr(nt, name))])
def test_every_raised_name_is_an_error_of_the_package(name: str) -> None:
    """What a "Raises:" section names exists, and is caught by `except nt.NexttouchError`."""
    section = str(inspect.getdoc(getattr(nt, name))).partition("Raises:\n")[2].partition("\n\n")[0]
    for line in section.split("\n"):
        before, colon, _ = line.strip().partition(": ")
        if colon and line.startswith("    ") and not line.startswith("     "):
            for word in before.split(", "):
                assert issubclass(getattr(errors, word), nt.NexttouchError)


# ---- Its modules --------------------------------------------------------------------------------------------------


def test_every_public_definition_is_in_all(module: ModuleType) -> None:
    listed = getattr(module, "__all__", None)
    if listed is None:
        assert not public(module), "a module that defines something has __all__"
        return
    assert len(set(listed)) == len(listed)
    assert public(module) - set(listed) == set()
    for name in listed:
        assert hasattr(module, name)


def test_every_module_function_and_class_is_documented(module: ModuleType) -> None:
    assert module.__doc__, "its subject in a sentence"
    for node in tree(module).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), node.name


def test_every_signature_is_annotated(module: ModuleType) -> None:
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.FunctionDef):
            arguments = [
                *node.args.posonlyargs,
                *node.args.args,
                *node.args.kwonlyargs,
                node.args.vararg,
                node.args.kwarg,
            ]
            bare = [one.arg for one in arguments if one and not one.annotation and one.arg not in ("self", "cls")]
            assert not bare, f"{node.name}: {bare}"
            assert node.returns is not None or node.name == "__init__", node.name


FLOORS = (
    *("errors", "quantities", "printable", "linux", "topology", "placement", "allocate", "costs", "policy"),
    *("live", "model", "check", "sim", "lab"),
    *("report", "demo", "cli"),
)
"""A part of the package imports from itself and those before it only."""

APART = ({"live"}, {"model", "check"}, {"sim"}, {"lab"})
"""These do not know of each other."""


def test_a_package_imports_from_below_only(module: ModuleType) -> None:
    floor = module.__name__.split(".")[1]
    assert floor in FLOORS, "a new floor: where is it in the house?"
    allowed = {"", "_core", "__version__", *FLOORS[: FLOORS.index(floor) + 1]}
    for group in APART:
        if any(floor in other for other in APART) and floor not in group:
            allowed -= group
    for name in imported(module):
        assert [*name.split("."), ""][1] in allowed, f"{module.__name__} imports {name}"


def imported(found: ModuleType) -> Iterator[str]:
    """Modules of the package that a module imports, by their full names."""
    is_package = str(found.__file__).endswith("__init__.py")
    package = found.__name__ if is_package else found.__name__.rpartition(".")[0]
    for node in ast.walk(tree(found)):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            yield from [base] if node.module else [f"{base}.{alias.name}" for alias in node.names]
