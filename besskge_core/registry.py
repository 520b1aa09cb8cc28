"""Look things up by name, and say which names exist when one does not.

A registry serves names that come from a configuration and tests that run over everything there
is; code uses the class itself.
"""

from __future__ import annotations

import difflib
from typing import Callable, Dict, Generic, Iterable, Iterator, TypeVar

T = TypeVar("T")


def nearest(name: str, known: Iterable[str]) -> str:
    """`" (did you mean 'complex'?)"`, or nothing if no known name is close."""
    close = difflib.get_close_matches(name.lower(), list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def squeezed(name: str) -> str:
    """A name without case, underscores and hyphens."""
    return name.lower().replace("_", "").replace("-", "")


class Registry(Generic[T]):
    """Named entries of one kind: ``LOSSES = Registry[...]("loss")``."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: Dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator: enter what follows under `name`.

        Raises:
            ValueError: the name is taken.
        """

        def add(entry: T) -> T:
            if name in self._entries:
                raise ValueError(f"{self.kind} {name!r} is registered already")
            self._entries[name] = entry
            return entry

        return add

    def __getitem__(self, name: str) -> T:
        if name.lower() not in self._entries:
            raise ValueError(
                f"unknown {self.kind} {name!r}; expected one of {sorted(self._entries)}"
                f"{nearest(name, self._entries)}"
            )
        return self._entries[name.lower()]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))

    def __contains__(self, name: str) -> bool:
        return name.lower() in self._entries
