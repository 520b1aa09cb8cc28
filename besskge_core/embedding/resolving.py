"""From what a user gives, a name, a class or a function, to what an embedding calls."""

from __future__ import annotations

import functools
import inspect
from typing import Any, Callable, Mapping, Optional, TypeVar, Union

from besskge_core.errors import ConfigError
from besskge_core.registry import Registry, squeezed

T = TypeVar("T")
#: A name of a registry, a class, or something to be called.
Choice = Union[str, type, Callable[..., Any]]


class LooseRegistry(Registry[T]):
    """A registry whose names match without case, underscores and a suffix, PyKEEN's manner.

    Args:
        kind: what the entries are, for messages.
        suffix: of class names; with "regularizer", `"LpRegularizer"` is `"lp"`.

    >>> colours = LooseRegistry("colour", suffix="paint")
    >>> _ = colours.register("dark_red")(1)
    >>> colours["DarkRed"], colours["dark_red_"], colours["DarkRedPaint"]
    (1, 1, 1)
    """

    def __init__(self, kind: str, suffix: str = "") -> None:
        super().__init__(kind)
        self.suffix = suffix

    def __getitem__(self, name: str) -> T:
        return super().__getitem__(self._listed(name))

    def __contains__(self, name: str) -> bool:
        return super().__contains__(self._listed(name))

    def _listed(self, name: str) -> str:
        listed = {_squeezed(known): known for known in self}
        wanted = _squeezed(name)
        if wanted not in listed and self.suffix and wanted.endswith(self.suffix):
            wanted = wanted[: -len(self.suffix)]
        return listed.get(wanted, name)


def _squeezed(name: str) -> str:
    return squeezed(name).replace(" ", "")


def resolve(
    registry: LooseRegistry[Any], choice: Optional[Choice], options: Optional[Mapping[str, Any]]
) -> Any:
    """What is to be called: a function with its options, or an instance of a class.

    Args:
        registry: of the names.
        choice: a name, a class, or something callable; None gives None.
        options: keyword arguments of the function or class.

    Raises:
        ConfigError: neither, or options for nothing.
        ValueError: an unknown name; lists the known ones.
        TypeError: options that it does not take.
    """
    options = dict(options or {})
    if choice is None:
        if options:
            raise ConfigError(
                f"{registry.kind} has options {sorted(options)}, but there is no {registry.kind};"
                " name one"
            )
        return None
    found = registry[choice] if isinstance(choice, str) else choice
    if isinstance(found, type):
        return found(**options)
    if not callable(found):
        raise ConfigError(
            f"{registry.kind} must be one of {sorted(registry)}, a class or a function,"
            f" got {choice!r}"
        )
    if not options:
        return found
    _check_options(found, options)
    return functools.partial(found, **options)


def _check_options(function: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Refuse unknown options now, not at the first call."""
    try:
        signature = inspect.signature(function)
    except ValueError:  # a builtin that does not tell
        return
    signature.bind(None, **options)
