"""Who is meant by a label: an identifier of the source, or a name for people to read."""

from __future__ import annotations

import difflib
from collections import defaultdict
from functools import cached_property
from typing import Dict, List, Optional, Sequence, Union

from besskge_core.errors import ConfigError

__all__ = ["Label", "Vocabulary"]

Label = Union[str, int]

N_SUGGESTION = 3
MAX_COMPARED = 20_000  # labels that an unknown one is compared with


class Vocabulary:
    """What the entities or the relations are called, and who is meant by a label.

    Args:
        kind: "entity" or "relation", for messages.
        n: how many there are.
        labels: ID to identifier; without them, an ID is its own label.
        names: ID to name, which need not be unique.
    """

    def __init__(
        self,
        kind: str,
        n: int,
        labels: Optional[Sequence[str]] = None,
        names: Optional[Sequence[str]] = None,
    ) -> None:
        self.kind, self.n = kind, n
        self._labels, self._names = labels, names

    def label(self, i: int) -> str:
        """Identifier of an ID."""
        return str(i) if self._labels is None else self._labels[i]

    def name(self, i: int) -> Optional[str]:
        """Name of an ID, if it has one."""
        return None if self._names is None else self._names[i]

    def id(self, label: Label) -> int:
        """Who is meant: an ID, else an identifier, else a name.

        Raises:
            ConfigError: nobody, or several of the same name.
        """
        if isinstance(label, int):
            if not 0 <= label < self.n:
                raise ConfigError(f"{self.kind} ID {label} is not in [0, {self.n})")
            return int(label)
        if self._labels is None and label.isdigit() and int(label) < self.n:
            return int(label)
        if label in self._id_of_label:
            return self._id_of_label[label]
        named = self._ids_of_name.get(label, [])
        if len(named) > 1:
            few = ", ".join(self.label(i) for i in named[:10])
            more = f" and {len(named) - 10} more" if len(named) > 10 else ""
            raise ConfigError(
                f"{self.kind} {label!r} is the name of {len(named)}: {few}{more};"
                " use one of these identifiers"
            )
        if not named:
            raise ConfigError(f"unknown {self.kind} {label!r}{self._suggestions(label)}")
        return named[0]

    @cached_property
    def _id_of_label(self) -> Dict[str, int]:
        return {label: i for i, label in enumerate(self._labels or ())}

    @cached_property
    def _ids_of_name(self) -> Dict[str, List[int]]:
        ids: Dict[str, List[int]] = defaultdict(list)
        for i, name in enumerate(self._names or ()):
            ids[name].append(i)
        return dict(ids)

    def _suggestions(self, label: str) -> str:
        """The nearest labels and names; of a large vocabulary, among those that begin alike."""
        every = list(dict.fromkeys([*(self._labels or ()), *(self._names or ())]))
        if not every:
            return f"; expected an ID in [0, {self.n})"
        lower, first = label.lower(), label[:1].lower()
        near = [text for text in every if text.lower() == lower]
        alike = (
            every if len(every) <= MAX_COMPARED else [x for x in every if x[:1].lower() == first]
        )
        near += difflib.get_close_matches(label, alike[:MAX_COMPARED], n=N_SUGGESTION)
        near += [text for text in every if lower and lower in text.lower()][:N_SUGGESTION]
        found = list(dict.fromkeys(near))[:N_SUGGESTION]
        return f"; did you mean {' or '.join(map(repr, found))}?" if found else ""
