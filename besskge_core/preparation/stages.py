"""Work in stages that a kill does not undo.

Each stage that has ended is noted with the sizes and checksums of its files, in a journal that is
replaced as a whole. Who takes the work up again skips a stage whose files are as noted, and runs
any other from its beginning.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Callable, Dict, NamedTuple, Optional, Tuple

from besskge_core.errors import ConfigError
from besskge_core.prepared import Record, record_of
from besskge_core.whole_files import write_json

__all__ = ["Done", "Stages"]

Facts = Dict[str, Any]


class Done(NamedTuple):
    """Facts that a stage found, as JSON, and its files: name to size and checksum."""

    facts: Facts
    files: Dict[str, Record]


class Stages:
    """The journal of a folder's stages.

    Args:
        path: of the journal.
        folder: which the names of files are relative to.
        plan: what is to be done, as JSON; a journal of another plan is refused.
        resume: go on with a journal that is there.

    Raises:
        ConfigError: the journal is of another plan; names what differs.
    """

    def __init__(self, path: Path, folder: Path, plan: Dict[str, Any], resume: bool) -> None:
        self._path, self._folder = path, folder
        self._journal: Dict[str, Any] = {"plan": plan, "done": {}}
        stored = self._stored() if resume else None
        if stored is not None:
            differing = [key for key in plan if stored["plan"].get(key) != plan[key]]
            if differing:
                raise ConfigError(
                    f"{folder}: what was begun there had other {', '.join(differing)}:"
                    f" {stored['plan'].get(differing[0])}, now {plan[differing[0]]}; prepare in an"
                    " empty folder"
                )
            self._journal = stored
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, self._journal)

    def _stored(self) -> Optional[Dict[str, Any]]:
        try:
            stored: Dict[str, Any] = json.loads(self._path.read_text(encoding="utf-8"))
            return stored
        except (FileNotFoundError, ValueError):
            return None

    def run(self, name: str, work: Callable[[], Tuple[Facts, Dict[Path, Record]]]) -> Done:
        """What a stage leaves; it is run unless it has ended and its files are as noted."""
        noted = self._journal["done"].get(name)
        if noted and all(self._is_whole(*item) for item in noted["files"].items()):
            return Done(**noted)
        facts, records = work()
        files = {path.relative_to(self._folder).as_posix(): x for path, x in records.items()}
        self._journal["done"][name] = {"facts": facts, "files": files}
        write_json(self._path, self._journal)
        return Done(facts, files)

    def _is_whole(self, name: str, record: Record) -> bool:
        path = self._folder / name
        is_there = path.is_file() and path.stat().st_size == record["size"]
        return is_there and record_of(path) == record
