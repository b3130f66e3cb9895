"""Files and folders that a reader sees whole or not at all, even after a power cut."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import msgspec

from uellm_cli.errors import OutputError

# What is collected before the system is asked to write it.
BUFFER_BYTES = 1 << 18


def cache_folder(kind: str, environment: Mapping[str, str]) -> Path:
    """Where what can be made again is kept for this user; it may not be there yet."""
    own = environment.get("UELLM_CACHE_DIR")
    if own:
        return Path(own) / kind
    shared = environment.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "uellm" / kind


@contextmanager
def replacing(*paths: Path) -> Iterator[Sequence[BinaryIO]]:
    """Files to write in the place of `paths`, which change together when the block has ended well.

    If one cannot be written, OutputError, and the old content of all stands. Links are followed.
    """
    targets = [path.resolve() for path in paths]
    parts = [target.with_name(f".{target.name}.uellm-part") for target in targets]
    try:
        with ExitStack() as stack:
            files = [stack.enter_context(part.open("wb", BUFFER_BYTES)) for part in parts]
            yield files
            for file in files:
                file.flush()
                os.fsync(file.fileno())
        for part, target in zip(parts, targets, strict=True):
            part.replace(target)
        for directory in {target.parent for target in targets}:
            sync_directory(directory)
    except OSError as error:
        names = ", ".join(str(target) for target in targets)
        raise OutputError(f"{names}: cannot be written: {error.strerror or error}") from error
    finally:
        for part in parts:
            with suppress(OSError):
                part.unlink(missing_ok=True)


def replace_file(path: Path, content: bytes) -> None:
    """Puts `content` in the place of `path`, as `replacing` does.

    A pipe or a device is written to as it is, since there is nothing to keep.
    """
    if path.exists() and not path.is_file():
        try:
            path.write_bytes(content)
        except OSError as error:
            raise OutputError(f"{path}: cannot be written: {error.strerror}") from error
        return
    with replacing(path) as (file,):
        file.write(content)


def write_json(path: Path, document: object) -> None:
    """`replace_file` with `document` as indented JSON."""
    replace_file(path, msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """An empty folder to fill, which takes the place of `path` when the block has ended well.

    If it cannot be written, OutputError, and what is at `path` stands. Links are followed. Two
    renames are needed: a kill between them leaves nothing at `path`, and the old folder beside it.
    """
    target = path.resolve()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-"))
        try:
            yield fresh
            fresh.chmod(0o755)
            _sync_tree(fresh)
            _put_in_place(fresh, target)
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            raise
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error


def _put_in_place(fresh: Path, target: Path) -> None:
    old = fresh.with_name(f"{fresh.name}-old")
    if target.exists():
        target.rename(old)
    try:
        fresh.rename(target)
    except BaseException:
        if old.exists():
            old.rename(target)
        raise
    sync_directory(target.parent)
    # What cannot be deleted is no reason to say that the new one is not there.
    shutil.rmtree(old, ignore_errors=True)


def _sync_tree(directory: Path) -> None:
    """Makes all files below a directory durable, and their names."""
    for path in directory.rglob("*"):
        if path.is_dir():
            sync_directory(path)
        else:
            with path.open("rb") as file:
                os.fsync(file.fileno())
    sync_directory(directory)


def sync_directory(directory: Path) -> None:
    """Makes a directory's entries durable: a file's own fsync does not."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
