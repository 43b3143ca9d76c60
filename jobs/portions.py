"""Things in order, as many together as fit."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def portions(things: Iterable[T], size_of: Callable[[T], int], *, largest: int, most: int | None = None) -> Iterator[list[T]]:
    """Lists of at most ``most`` things, whose sizes add up to at most ``largest``; what is larger by itself comes alone."""
    portion: list[T] = []
    size = 0
    for thing in things:
        more = size_of(thing)
        if portion and (len(portion) == most or size + more > largest):
            yield portion
            portion, size = [], 0
        portion.append(thing)
        size += more
    if portion:
        yield portion
