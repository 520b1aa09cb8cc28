"""Where the records of a run go: JSON lines, CSV, TensorBoard, a terminal.

A record is what is known after an epoch: names to numbers or words. Files are appended to, a line
at a time. When a run is resumed, the epochs that will be done again are taken out first, and so
is a line that a kill cut short; hence the log of a run that was killed is that of one that was
not.
"""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Protocol, Sequence, Union

from rich.console import Console

from besskge_core.errors import ConfigError, DataError
from besskge_core.registry import Registry
from besskge_core.whole_files import write_whole

__all__ = [
    "TRACKERS",
    "ConsoleTracker",
    "CsvTracker",
    "JsonLinesTracker",
    "TensorBoardTracker",
    "Tracker",
    "make_trackers",
]

Value = Union[float, int, str]
Record = Mapping[str, Value]


class Tracker(Protocol):
    """Takes the records of a run."""

    def log(self, record: Record, epoch: int) -> None:
        """Keep what is known after an epoch."""

    def close(self) -> None:
        """Nothing more will come."""


#: Trackers that a configuration can name, each made of (folder of the run, first epoch to come).
TRACKERS: Registry[Callable[[Path, int], Tracker]] = Registry("tracker")


def make_trackers(names: str, folder: Path, first_epoch: int = 0) -> List[Tracker]:
    """The trackers of a comma-separated list.

    Args:
        names: some of :data:`TRACKERS`, or nothing.
        folder: of the run.
        first_epoch: records of this epoch and later ones are dropped from files that are there.

    Raises:
        ConfigError: unknown name, or a library is missing.
        DataError: a log that is there is damaged.
    """
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    unknown = [name for name in wanted if name not in TRACKERS]
    if unknown:
        raise ConfigError(f"unknown tracker {unknown[0]!r}; expected some of {list(TRACKERS)}")
    folder.mkdir(parents=True, exist_ok=True)
    return [TRACKERS[name](folder, first_epoch) for name in dict.fromkeys(wanted)]


@TRACKERS.register("jsonl")
class JsonLinesTracker:
    """A JSON object on each line of `log.jsonl`; null for what is not a finite number."""

    def __init__(self, folder: Path, first_epoch: int = 0) -> None:
        self._path = folder / "log.jsonl"
        _replace(self._path, "".join(_lines_before(self._path, first_epoch)))

    def log(self, record: Record, epoch: int) -> None:
        full = {"epoch": epoch, **{name: _finite_or_none(value) for name, value in record.items()}}
        _append(self._path, json.dumps(full, ensure_ascii=False) + "\n")

    def close(self) -> None:
        pass


@TRACKERS.register("csv")
class CsvTracker:
    """`log.csv` with one header; a column that appears later is empty in the rows before."""

    def __init__(self, folder: Path, first_epoch: int = 0) -> None:
        self._path = folder / "log.csv"
        self._rows = _rows_before(self._path, first_epoch)
        # Columns in the order in which the rows that stay brought them.
        self._columns = list(dict.fromkeys(n for row in self._rows for n, x in row.items() if x))
        _replace(self._path, self._text(self._rows, header=bool(self._columns)))

    def log(self, record: Record, epoch: int) -> None:
        row = {"epoch": str(epoch), **{name: str(value) for name, value in record.items()}}
        self._rows.append(row)
        columns = list(dict.fromkeys([*self._columns, *row]))
        if columns != self._columns:
            self._columns = columns
            _replace(self._path, self._text(self._rows, header=True))
            return
        _append(self._path, self._text([row], header=False))

    def close(self) -> None:
        pass

    def _text(self, rows: Sequence[Mapping[str, str]], header: bool) -> str:
        out = io.StringIO()
        writer = csv.DictWriter(out, self._columns, restval="", lineterminator="\n")
        if header:
            writer.writeheader()
        writer.writerows(rows)
        return out.getvalue()


@TRACKERS.register("tensorboard")
class TensorBoardTracker:
    """Event files in `tensorboard/`; words are left out.

    Event files cannot be cut, so TensorBoard itself is told to forget the epochs done again.
    """

    def __init__(self, folder: Path, first_epoch: int = 0) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError(
                "the tracker 'tensorboard' needs a package that is not installed:"
                " pip install tensorboard"
            ) from error
        self._writer: Any = SummaryWriter(str(folder / "tensorboard"), purge_step=first_epoch)

    def log(self, record: Record, epoch: int) -> None:
        for name, value in record.items():
            if name != "epoch" and not isinstance(value, str):
                self._writer.add_scalar(name, value, epoch)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


@TRACKERS.register("console")
class ConsoleTracker:
    """A line for each record.

    Args:
        folder, first_epoch: not used.
        console: by default standard output.
    """

    def __init__(
        self,
        folder: Optional[Path] = None,
        first_epoch: int = 0,
        console: Optional[Console] = None,
    ) -> None:
        self._console = console or Console(soft_wrap=True)

    def log(self, record: Record, epoch: int) -> None:
        pairs = [
            f"{name} {f'{value:.4g}' if isinstance(value, float) else value}"
            for name, value in record.items()
            if name != "epoch"
        ]
        line = "  ".join([f"epoch {epoch}", *pairs])
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        pass


# -- files that are there already ------------------------------------------------------------------


def _lines_before(path: Path, first_epoch: int) -> List[str]:
    return [
        line
        for number, line in enumerate(_whole_lines(path), start=1)
        if _epoch(path, number, line) < first_epoch
    ]


def _epoch(path: Path, number: int, line: str) -> int:
    try:
        return int(json.loads(line)["epoch"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}:{number}: not a record with an epoch; mend the line or remove the file"
        ) from error


def _rows_before(path: Path, first_epoch: int) -> List[Dict[str, str]]:
    lines = _whole_lines(path)
    kept: List[Dict[str, str]] = []
    for row in csv.DictReader(io.StringIO("".join(lines), newline="")):
        number = len(kept) + 2
        try:
            epoch = int(row["epoch"])
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path}:{number}: not a record with an epoch; mend the line or remove the file"
            ) from error
        if epoch < first_epoch:
            kept.append({name: value for name, value in row.items() if name and value})
    return kept


def _whole_lines(path: Path) -> List[str]:
    """Lines with their ends; what follows the last end was cut short by a kill."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        whole, _, _ = file.read().rpartition(b"\n")
    return [f"{line}\n" for line in whole.decode("utf-8").split("\n")] if whole else []


def _append(path: Path, line: str) -> None:
    with path.open("a", encoding="utf-8", newline="") as file:
        file.write(line)


def _replace(path: Path, text: str) -> None:
    write_whole(path, lambda unfinished: unfinished.write_bytes(text.encode()))


def _finite_or_none(value: Value) -> Optional[Value]:
    return None if isinstance(value, float) and not math.isfinite(value) else value
