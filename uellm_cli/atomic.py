"""Files that a reader sees whole or not at all, even after a power cut."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import msgspec

from uellm_cli.errors import OutputError


def replace_file(path: Path, content: bytes) -> None:
    """Puts `path` on the disk; if that fails, OutputError, and the old content stands.

    A link is followed; a pipe or a device is written to as it is, since there is nothing to keep.
    """
    path = path.resolve()
    part = path.with_name(path.name + ".part")
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(content)
            return
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        sync_directory(path.parent)
    except OSError as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from error


def write_json(path: Path, document: object) -> None:
    """`replace_file` with `document` as indented JSON."""
    replace_file(path, msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")


def sync_directory(directory: Path) -> None:
    """Makes a directory's entries durable: a file's own fsync does not."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
