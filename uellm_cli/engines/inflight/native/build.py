"""Compiles the kernels when they are first wanted, once per machine and version.

The library is kept in a cache folder under a name made from all that went into it, and put there
in one step, so that processes may build it at the same time. Where that folder cannot be written,
or others could put something of theirs there, it is built for this process alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from itertools import takewhile
from pathlib import Path
from typing import IO

from uellm_cli.atomic import cache_folder

TIMEOUT_S = 180.0
LEFT_BEHIND_S = 24 * 3600.0  # no build takes so long: its process has been killed
SOURCES = Path(__file__).resolve().parent
MAIN_SOURCE = "kernels.cpp"
# What torch asks of a processor before it calls it AVX2 or AVX512, and no more than that.
_AVX2 = ("-mavx2", "-mfma")
LEVELS: dict[str, tuple[str, ...]] = {
    "generic": (),
    "avx2": _AVX2,
    "avx512": (
        *_AVX2,
        *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"),
    ),
}
FLAGS = (
    *("-O3", "-std=c++17", "-fPIC", "-shared", "-fvisibility=hidden"),
    *("-fno-exceptions", "-fno-rtti", "-Wno-psabi"),
    # A sum and a product are rounded as torch rounds them, unless the source asks for an FMA.
    *("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"),
)


class BuildError(Exception):
    """Why there are no kernels; never leaves this package."""


def open_library(level: str) -> ctypes.CDLL:
    """The kernels for `level`, built if need be. Raises BuildError, whatever fails."""
    compiler = _compiler()
    name = _file_name(compiler, level)
    try:
        path: Path | None = _trusted_folder() / name
    except (OSError, RuntimeError):  # RuntimeError: no home folder
        path = None
    if path is not None and _is_whole(path):
        # Whole, and yet not for this machine's loader or C library: to be replaced.
        with contextlib.suppress(OSError):
            return _opened(path)
    with contextlib.ExitStack() as stack:
        building, path = _building_folder(path, stack)
        built = _compiled(compiler, level, building / name)
        try:
            return _opened(built if path is None else built.replace(path))
        except OSError as error:
            raise BuildError(f"the compiled kernels cannot be loaded: {error}") from error


# --- what is kept -------------------------------------------------------------------------------


def _trusted_folder() -> Path:
    """The cache folder, made if need be. Raises OSError where it is not this user's or root's."""
    folder = cache_folder("kernels", os.environ)
    missing = [*takewhile(lambda path: not path.exists(), (folder, *folder.parents))]
    for path in reversed(missing):
        path.mkdir(mode=0o700, exist_ok=True)
    _check_owner(folder.stat())
    return folder


def _check_owner(status: os.stat_result) -> None:
    """What is in a library is run: only this user, or root, may have been able to write it."""
    if status.st_uid not in (0, os.geteuid()) or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError("others may write it")


def _is_whole(path: Path) -> bool:
    """Whether it ends with its own digest. To load a file that was cut short ends the process."""
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            _check_owner(status)
            content = file.read() if stat.S_ISREG(status.st_mode) else b""
    except OSError:
        return False
    size = len(content) - hashlib.sha256().digest_size
    return size > 0 and hashlib.sha256(content[:size]).digest() == content[size:]


def _seal(path: Path) -> None:
    """Makes it whole, and sees to it that it still is when the machine has lost its power."""
    with path.open("r+b") as file:
        digest = hashlib.sha256(file.read()).digest()
        file.write(digest)  # loaders do not look at what follows the last section
        file.flush()
        os.fsync(file.fileno())
    path.chmod(0o755)  # whatever the umask lets others do


def _opened(path: Path) -> ctypes.CDLL:
    """Raises OSError. A copy is opened where the cache folder's programs may not be run."""
    try:
        return ctypes.CDLL(str(path))
    except OSError:
        with tempfile.TemporaryDirectory(prefix="uellm-kernels-") as folder:
            return ctypes.CDLL(str(shutil.copy(path, folder)))  # stays mapped when it is gone


# --- the build ----------------------------------------------------------------------------------


def _building_folder(path: Path | None, stack: contextlib.ExitStack) -> tuple[Path, Path | None]:
    """A private folder for the compiler, until `stack` ends, and `path` if it can be moved there.

    Beside `path` where that can be written. Raises BuildError.
    """
    if path is not None:
        with contextlib.suppress(OSError):
            _sweep(path.parent)
            beside = tempfile.TemporaryDirectory(
                prefix="building-", suffix=".tmp", dir=path.parent, ignore_cleanup_errors=True
            )
            return Path(stack.enter_context(beside)), path
    try:
        private = tempfile.TemporaryDirectory(prefix="uellm-kernels-", ignore_cleanup_errors=True)
    except OSError as error:
        raise BuildError(f"there is no folder to build the kernels in: {error}") from error
    return Path(stack.enter_context(private)), None


def _sweep(folder: Path) -> None:
    """Removes what builds left behind that were killed."""
    for left in folder.glob("building-*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - left.lstat().st_mtime > LEFT_BEHIND_S:
                shutil.rmtree(left)


def _compiler() -> list[str]:
    wanted = os.environ.get("CXX", "")
    try:
        command = shlex.split(wanted)
    except ValueError as error:
        raise BuildError(f"CXX is no command: {wanted!r}: {error}") from error
    if command:
        return command
    for name in ("c++", "g++", "clang++"):
        path = shutil.which(name)
        if path is not None:
            return [path]
    raise BuildError("there is no C++ compiler: none of c++, g++, clang++ is found")


def _file_name(compiler: list[str], level: str) -> str:
    version = _run([*compiler, "--version"])
    digest = hashlib.sha256()
    try:
        for path in sorted(SOURCES.glob("*.?pp")):
            digest.update(path.read_bytes())
    except OSError as error:
        raise BuildError(f"the kernels' source cannot be read: {error}") from error
    for text in (platform.machine(), version, *compiler, *FLAGS, *LEVELS[level]):
        digest.update(os.fsencode(text) + b"\0")
    return f"kernels-{level}-{digest.hexdigest()[:20]}.so"


def _compiled(compiler: list[str], level: str, path: Path) -> Path:
    source = str(SOURCES / MAIN_SOURCE)
    # The compiler's own files go where there is a folder for certain.
    folder = str(path.parent)
    _run([*compiler, *FLAGS, *LEVELS[level], source, "-o", str(path)], {"TMPDIR": folder})
    try:
        _seal(path)
    except OSError as error:
        raise BuildError(f"what was compiled cannot be read or written: {error}") from error
    return path


def _run(command: list[str], environment: dict[str, str] | None = None) -> str:
    """What it prints. Raises BuildError."""
    try:
        # Files rather than pipes: a compiler's children (a cache's server) may outlive it.
        with _file() as out, _file() as err:
            code = _exit_status(command, out, err, {"LC_ALL": "C", **(environment or {})})
            out.seek(0)
            err.seek(0)
            printed, complaint = (file.read().decode(errors="replace") for file in (out, err))
    except OSError as error:
        raise BuildError(f"{command[0]} cannot be run: {error}") from error
    if code != 0:
        lines = complaint.strip().splitlines()
        first = next((line for line in lines if "error" in line), complaint.strip())
        why = f": {first[:300]}" if first else ""
        raise BuildError(f"{command[0]} failed with exit status {code}{why}")
    return printed


def _exit_status(
    command: list[str], out: IO[bytes], err: IO[bytes], environment: dict[str, str]
) -> int:
    process = subprocess.Popen(  # noqa: S603  # the user's own compiler
        command,
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=err,
        env={**os.environ, **environment},
        start_new_session=True,
    )
    try:
        return process.wait(TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise BuildError(f"{command[0]} took more than {TIMEOUT_S:g} s") from None
    finally:
        if process.returncode is None:  # time is up, or the user has had enough
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # it, and the compiler proper under it
            process.wait()


def _file() -> IO[bytes]:
    """In memory if possible: kernels that are built already need no temporary folder."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("uellm-compiler"), "w+b")
    return tempfile.TemporaryFile()
