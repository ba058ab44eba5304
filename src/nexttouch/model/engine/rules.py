"""How a pager deals with memory that the program unmaps and moves: rules, each the cure of a race."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import InvalidArgument

__all__ = ["Rules", "parse_rule"]


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules that a pager keeps, and two that the kernel and the process keep.

    Attributes:
        descriptor_each: each mapping is registered with a descriptor of its own.
        adds_up: such a mapping is where the differences of all its moves lead, in whatever order they are read.
        unmap_is_certain: what an unmapping was told of is gone. Otherwise putting its pages back finds out, as the
            kernel also tells of unmappings that fail.
        uproots: a mapping that comes to where another one is believed to be uproots that: the next move from there is
            the uprooted one's, and if nothing is changing any more it is gone.
        follows_done: mappings whose pages have all been dealt with are followed like others.
        newcomer_settles: a mapping that comes to a place shows that the unmapping told of there did not fail.
        keeps_watching: where a mapping went stays registered. Otherwise it is unregistered when its pages are back
            there, whatever lies at the address by then.
        carries_moved_ranges: events move such addresses on, or drop them, while they wait to be unregistered.
        rests: while the kernel refuses, mappings to which nothing has to be put back are unregistered; they are
            registered again before the next event is read.
        closes: at the end the descriptor is closed, and nothing is unregistered before.
        checks_owner: the kernel refuses to unregister what another descriptor has registered, as since Linux 6.17.
        last_copy: no forked child has a copy of the descriptor, so that closing it lets go of what it has registered.
    """

    descriptor_each: bool = True
    adds_up: bool = True
    unmap_is_certain: bool = False
    uproots: bool = True
    follows_done: bool = True
    newcomer_settles: bool = True
    keeps_watching: bool = True
    carries_moved_ranges: bool = True
    rests: bool = False
    closes: bool = True
    checks_owner: bool = False
    last_copy: bool = True


def parse_rule(text: str) -> tuple[str, bool]:
    """Read a rule and what it is to be: "unmap_is_certain=yes".

    Raises:
        InvalidArgument: there is no such rule, or it is neither yes nor no.
    """
    name, equals, value = text.partition("=")
    if not equals:
        raise InvalidArgument(
            "--rule", f"is {text!r}, but has to be a rule and its value, such as unmap_is_certain=yes"
        )
    if name not in Rules.__slots__:
        raise InvalidArgument("--rule", f"names {name!r}, but the rules are {', '.join(Rules.__slots__)}")
    if value not in ("yes", "no"):
        raise InvalidArgument("--rule", f"{name} is {value!r}, but has to be one of yes, no")
    return name, value == "yes"
