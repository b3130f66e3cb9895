"""Every error that uellm raises on purpose, and the exit code each one ends with.

An error's text is one sentence for the person at the terminal: it names the file, line or number
that matters and what to do. The command line translates these once, in `cli/app.py`; anything else
that escapes is a defect and ends with exit code 1.
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """What the process tells its caller; see the README's table."""

    OK = 0
    FATAL = 1
    UNUSABLE_INPUT = 2
    SOME_REQUESTS_FAILED = 3
    SLO_MISSED = 4
    INTERRUPTED = 130


class UellmError(Exception):
    """Base of all errors raised on purpose."""

    exit_code = ExitCode.FATAL


class UnusableInputError(UellmError):
    """Something the user gave cannot be used; nothing has been run."""

    exit_code = ExitCode.UNUSABLE_INPUT


class UsageError(UnusableInputError):
    """A flag or option has a value that means nothing here."""


class RequestFileError(UnusableInputError):
    """A request file is missing, empty, unreadable or holds no valid request."""


class DocumentError(UnusableInputError):
    """A small configuration document (SLO file, topology, model config) is malformed."""


class ModelError(UnusableInputError):
    """A model is not there, or its description cannot be understood."""


class TopologyError(UnusableInputError):
    """A topology contradicts itself or describes no usable device."""


class PlacementError(UnusableInputError):
    """The model fits on no allowed set of devices."""


class PredictorError(UnusableInputError):
    """A predictor's files cannot be used, or it cannot learn from what it was given."""


class PlanError(UnusableInputError):
    """A plan cannot be read, or was made for something else."""


class RunDirectoryError(UnusableInputError):
    """A run directory cannot be used as asked."""


class JournalError(UellmError):
    """The journal cannot be written or holds records that contradict each other."""


class OutputError(UellmError):
    """A file that was asked for, or that a run needs, cannot be written."""


class EngineError(UellmError):
    """An engine cannot start, or broke in a way that its requests cannot survive."""
