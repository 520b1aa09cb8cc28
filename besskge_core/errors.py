"""Every error and warning that besskge_core raises on purpose, as one tree.

::

    BessError
    ├── ConfigError (ValueError)              an option or argument has a value that cannot work
    │   └── ProgramError                      a step that cannot be compiled for an IPU
    ├── ShapeError (ValueError)               an array or tensor lacks the axes that were promised
    ├── DataError (ValueError)                input data is wrong; begins "file:line:" where known
    ├── DatasetNotFoundError (FileNotFoundError)  no benchmark, file or folder of this name
    ├── DownloadError (OSError)               a benchmark could not be fetched, or came damaged
    ├── PreparationError (OSError)            preparing a data set cannot go on, as for a full disk
    ├── CheckpointError (RuntimeError)        a checkpoint is incomplete, damaged or of other make
    ├── StorageError (OSError)                a file of a run could not be written: no space, ...
    ├── WorkerLostError (RuntimeError)        another rank died, hangs or failed
    ├── NoSampleWeightSupportError (RuntimeError)      this loss has no place for such weights
    ├── UnsupportedLabelSmoothingError (RuntimeError)  this loss has no labels to smooth
    ├── NoTrainingBatchError (RuntimeError)            nothing is left to train on
    ├── SubBatchingNotSupportedError (RuntimeError)    batches of this kind have no parts
    └── NonFiniteLossError (ArithmeticError)  the loss became NaN or infinite

    UserWarning
    └── DataWarning                           input data looks wrong, but carrying on is right

``except BessError`` catches all of them; the built-in class in brackets is a base too, so that
``except ValueError`` works as well. Each message says what was expected, what came and what to do.
"""

from __future__ import annotations

__all__ = [
    "BessError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DataWarning",
    "DatasetNotFoundError",
    "DownloadError",
    "NoSampleWeightSupportError",
    "NoTrainingBatchError",
    "NonFiniteLossError",
    "PreparationError",
    "ProgramError",
    "ShapeError",
    "StorageError",
    "SubBatchingNotSupportedError",
    "UnsupportedLabelSmoothingError",
    "WorkerLostError",
]


class BessError(Exception):
    """Base of all errors of besskge_core."""


class ConfigError(BessError, ValueError):
    """An option or argument has a value that cannot work."""


class ProgramError(ConfigError):
    """A step cannot be a program for an IPU; the message names the operator, the line, the reason."""


class ShapeError(BessError, ValueError):
    """An array or tensor does not have the axes its caller promised."""


class DataError(BessError, ValueError):
    """Input data is wrong; the message begins with ``file:line:`` where they are known."""


class DatasetNotFoundError(BessError, FileNotFoundError):
    """No benchmark, file or folder has this name."""


class DownloadError(BessError, OSError):
    """A benchmark could not be fetched, or what came is not what it should be."""


class PreparationError(BessError, OSError):
    """A data set cannot be prepared further, for a reason outside of the data."""


class CheckpointError(BessError, RuntimeError):
    """A checkpoint is incomplete, damaged or of another make."""


class StorageError(BessError, OSError):
    """A file of a run could not be written: no space, no permission."""


class WorkerLostError(BessError, RuntimeError):
    """Another rank of a distributed run died, hangs or failed; the message names it."""


class NoSampleWeightSupportError(BessError, RuntimeError):
    """A loss has no place for such sample weights."""


class UnsupportedLabelSmoothingError(BessError, RuntimeError):
    """A loss has no labels that could be smoothed."""


class NoTrainingBatchError(BessError, RuntimeError):
    """No batch is left to train on."""


class SubBatchingNotSupportedError(BessError, RuntimeError):
    """Batches of this kind cannot be computed in parts."""


class NonFiniteLossError(BessError, ArithmeticError):
    """The loss became NaN or infinite."""


class DataWarning(UserWarning):
    """Input data looks wrong, but carrying on is right; the message counts the cases."""
