"""Small models to explore: threads written down by hand, or drawn at random."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from nexttouch.model.move import Move
from nexttouch.model.violation import Violation

END = "end"
"""The local part of a thread that has ended."""

Thread = Callable[[Any, Any], Sequence[Move]]
"""The moves of a thread, by the shared and its local part. Local parts begin with 0."""


def kept(*_: object) -> Violation | None:
    """The promise that is never broken."""
    return None


@dataclass
class Threads:
    """A model of some threads; it remembers what it was asked.

    `asked` has the arguments of each call of `moves`, in their order; `ends` what `broken_end` was asked about.
    """

    threads: tuple[Thread, ...]
    start: Hashable = 0
    promise: Callable[[Any], Violation | None] = kept
    at_the_end: Callable[[Any, tuple[Any, ...]], Violation | None] = kept
    marks: set[str] = field(default_factory=set)
    asked: list[tuple[Any, int, Any]] = field(default_factory=list)
    ends: set[tuple[Any, tuple[Any, ...]]] = field(default_factory=set)

    def initial(self) -> tuple[Hashable, tuple[Hashable, ...]]:
        return self.start, (0,) * len(self.threads)

    def moves(self, shared: Any, thread: int, local: Any) -> Sequence[Move]:
        self.asked.append((shared, thread, local))
        return () if local == END else self.threads[thread](shared, local)

    def ended(self, thread: int, local: Any) -> bool:
        return bool(local == END)

    def broken(self, shared: Any) -> Violation | None:
        return self.promise(shared)

    def broken_end(self, shared: Any, locals_: tuple[Any, ...]) -> Violation | None:
        self.ends.add((shared, locals_))
        return self.at_the_end(shared, locals_)


def in_order(*steps: Callable[[Any], Any], private: bool = False) -> Thread:
    """A thread that takes `steps` one after the other and ends.

    Each step returns what the shared part becomes, None to wait, or a violation that it is.
    """

    def moves(shared: Any, local: Any) -> Sequence[Move]:
        after = steps[local](shared)
        following = local + 1 if local + 1 < len(steps) else END
        if after is None:
            return ()
        if isinstance(after, Violation):
            return (Move(f"step {local}", shared, local, after, fatal=True),)
        return (Move(f"step {local}", after, following, private=private),)

    return moves


def same(shared: Any) -> Any:
    """The step that changes nothing but whose turn it is."""
    return shared


Place = tuple[int, Any]
Rows = dict[Place, tuple[Move, ...]]
"""The moves of one thread at each (shared part, local part)."""


@dataclass(frozen=True)
class Table:
    """The thread that does what its rows say."""

    rows: Rows

    def __call__(self, shared: Any, local: Any) -> Sequence[Move]:
        return self.rows[shared, local]


@dataclass(frozen=True)
class Forbidden:
    """The promise that the shared part is none of `values`, wherever it is looked at."""

    values: frozenset[int]
    invariant: str

    def __call__(self, shared: int, _: object = None) -> Violation | None:
        return Violation(self.invariant, f"there is {shared}") if shared in self.values else None


@st.composite
def random_models(draw: st.DrawFn, *, loops: bool = True, private: bool = False, breaks: bool = True) -> Threads:
    """One to three threads, each with a random table.

    Without `loops` each step leads to a later local part. With `private` some steps are private and truly so: they are
    there whatever the shared part is, leave it alone, and do the same to the local part. With `breaks` there are
    promises to break: those of steps (that can be gone on from, and that cannot), of states, and of the end.
    """
    size, length = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    rows = _Rows(draw, size, length, loops, private, breaks)
    threads = tuple(Table(rows.drawn()) for _ in range(draw(st.integers(1, 3))))
    if not breaks:
        return Threads(threads)
    forbidden = st.frozensets(st.integers(1, size))  # `size` itself is never there
    return Threads(
        threads, promise=Forbidden(draw(forbidden), "I-STATE"), at_the_end=Forbidden(draw(forbidden), "I-END")
    )


@dataclass(frozen=True)
class _Rows:
    draw: st.DrawFn
    size: int
    length: int
    loops: bool
    private: bool
    breaks: bool

    def drawn(self) -> Rows:
        rows: Rows = {}
        for local in range(self.length):
            places = [(shared, local) for shared in range(self.size)]
            if self.private and self.draw(st.booleans()):
                following = self.draw(st.lists(self._later(local), min_size=1, max_size=2))
                rows |= {
                    place: tuple(Move("private", place[0], to, private=True) for to in following) for place in places
                }
            else:
                rows |= {place: tuple(self._moves(*place)) for place in places}
        return rows

    def _later(self, local: int) -> st.SearchStrategy[Any]:
        return st.integers(0 if self.loops else local + 1, self.length).map(lambda at: END if at == self.length else at)

    def _moves(self, shared: int, local: int) -> Iterator[Move]:
        seldom = st.integers(0, 39).map(lambda number: number == 23)
        after = st.tuples(st.integers(0, self.size - 1), self._later(local))
        for _ in range(self.draw(st.sampled_from((1, 1, 1, 1, 2, 2, 0)))):
            yield Move("move", *self.draw(after))
        if self.breaks and self.draw(seldom):
            yield Move("break", shared, local, Violation("I-STEP", f"a step at {shared}, {local}"), fatal=True)
        if self.breaks and self.draw(seldom):
            violation = Violation("I-COMPLAINT", f"a step at {shared}, {local}")
            yield Move("complain", *self.draw(after), violation)
