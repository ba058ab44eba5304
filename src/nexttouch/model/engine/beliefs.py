"""What an event tells a pager: where its mappings are now, as far as events tell.

The kernel queues an event some time after it has changed the mappings, so the events of different threads can be read
in another order than that of the changes. See `handle_event` in `_core/events.c`.
"""

from __future__ import annotations

from .rules import Rules
from .world import PARKED, UNKNOWN, Event, PageState, Told, World

__all__ = ["handle", "lose"]


def handle(world: World, pages: tuple[int, ...], number: int, rules: Rules, event: Event) -> None:
    """Draw the conclusions from an event for the `pages` of the pager of that `number`."""
    if event.kind is Told.REMAP:
        _remap(world, pages, rules, event)
        world.ranges[number] = _without(world.ranges[number], event.start, event.to)
        left = (event.start, event.to) if rules.carries_moved_ranges else (event.to,)
        world.moved[number] = (*_without(world.moved[number], *left), event.to)
    elif event.kind is Told.UNMAP:
        for page in _meant(world, pages, rules, event.start):
            _unmap(world, rules, page)
        world.ranges[number] = _without(world.ranges[number], event.start)
        if rules.carries_moved_ranges and not rules.keeps_watching:
            world.moved[number] = _without(world.moved[number], event.start)
    else:
        for page in _meant(world, pages, rules, event.start):
            if not world.states[page].final:
                world.finish(page, PageState.DISCARDED)


def _without(addresses: tuple[int, ...], *left: int) -> tuple[int, ...]:
    return tuple(address for address in addresses if address not in left)


# The pages of mappings that are believed to be at an address. A descriptor with one mapping can mean that one only.
def _meant(world: World, pages: tuple[int, ...], rules: Rules, address: int) -> list[int]:
    if rules.adds_up and len(pages) == 1:
        return list(pages)
    return [
        page
        for page in pages
        if world.at[page] == address and page not in world.uprooted and _followed(world, rules, page)
    ]


def _followed(world: World, rules: Rules, page: int) -> bool:
    return rules.follows_done or not world.states[page].final


def _remap(world: World, pages: tuple[int, ...], rules: Rules, event: Event) -> None:
    if rules.adds_up and len(pages) == 1:
        _go(world, pages[0], world.at[pages[0]] + event.to - event.start)
        return
    there = _meant(world, pages, rules, event.to)
    uprooted = [page for page in world.uprooted if page in pages and world.at[page] == event.start]
    # The place was that of the first uprooted page before it was that of any that came later.
    for page in uprooted[:1] or _meant(world, pages, rules, event.start):
        _go(world, page, event.to)
    for page in there:
        _lose_place(world, rules, page)


def _go(world: World, page: int, to: int) -> None:
    world.at[page] = to
    for pages in (world.uprooted, world.doubted):
        if page in pages:
            pages.remove(page)
    if world.states[page] in PARKED:
        world.states[page] = PageState.DUE
    elif world.states[page] is PageState.PLANNED:
        world.finish(page, PageState.REMAPPED)


# Another mapping came to where that of the page is believed to be. An armed page may stay so: its event is on its way.
def _lose_place(world: World, rules: Rules, page: int) -> None:
    if page in world.doubted and rules.newcomer_settles:
        world.doubted.remove(page)
        lose(world, page)
    elif rules.uproots:
        world.uprooted.append(page)
    elif world.states[page] is not PageState.ARMED:
        lose(world, page)


def lose(world: World, page: int) -> None:
    """The mapping of a page is gone; what was said of the page, if it was dealt with, stays said."""
    world.at[page] = UNKNOWN
    if not world.states[page].final:
        world.finish(page, PageState.UNMAPPED)


def _unmap(world: World, rules: Rules, page: int) -> None:
    if rules.unmap_is_certain:
        if world.states[page] is not PageState.DUE:
            lose(world, page)
        return
    if rules.newcomer_settles and page not in world.doubted:
        world.doubted.append(page)
    if world.states[page] is PageState.ARMED:
        world.states[page] = PageState.DUE
    elif world.states[page] is PageState.PLANNED:  # whatever is there next is not to be parked
        world.finish(page, PageState.LEFT)
