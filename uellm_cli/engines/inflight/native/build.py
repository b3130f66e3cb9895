"""Compiles the kernels when they are first wanted, once per machine and version.

The library is kept in a cache folder under a name made from all that went into it, and put there
in one step, so that processes may build it at the same time. Where the folder cannot be written or
run from, it is built for this process alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

TIMEOUT_S = 180.0
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
    """The kernels for `level`, built if need be. Raises BuildError."""
    compiler = _compiler()
    name = _file_name(compiler, level)
    try:
        folder = cache_folder()
        path = folder / name
        if not path.exists():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _compile(compiler, level, path)
        return ctypes.CDLL(str(path))
    except (OSError, RuntimeError):  # RuntimeError: no home folder
        return _open_uncached(compiler, level, name)


def _open_uncached(compiler: list[str], level: str, name: str) -> ctypes.CDLL:
    with contextlib.ExitStack() as stack:
        try:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="uellm-kernels-"))
            path = Path(folder, name)
            _compile(compiler, level, path)
            return ctypes.CDLL(str(path))  # stays mapped when the file is gone
        except OSError as error:
            raise BuildError(f"the compiled kernels cannot be loaded: {error}") from error


def cache_folder() -> Path:
    own = os.environ.get("UELLM_CACHE_DIR")
    if own:
        return Path(own) / "kernels"
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "uellm" / "kernels"


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
    for path in sorted(SOURCES.glob("*.?pp")):
        digest.update(path.read_bytes())
    for text in (version, *compiler, *FLAGS, *LEVELS[level]):
        digest.update(text.encode() + b"\0")
    return f"kernels-{level}-{digest.hexdigest()[:20]}.so"


def _compile(compiler: list[str], level: str, path: Path) -> None:
    """Raises BuildError where the compiler fails, OSError where nothing can be written."""
    handle, name = tempfile.mkstemp(prefix=f"{path.stem}-", suffix=".tmp", dir=path.parent)
    os.close(handle)
    try:
        source = str(SOURCES / MAIN_SOURCE)
        _run([*compiler, *FLAGS, *LEVELS[level], source, "-o", name])
        Path(name).replace(path)
    finally:
        Path(name).unlink(missing_ok=True)


def _run(command: list[str]) -> str:
    """What it prints. Files rather than pipes: a compiler's children may outlive it."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        try:
            code = subprocess.run(  # noqa: S603  # the user's own compiler
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, timeout=TIMEOUT_S
            ).returncode
        except subprocess.TimeoutExpired:
            raise BuildError(f"{command[0]} took more than {TIMEOUT_S:g} s") from None
        except OSError as error:
            raise BuildError(f"{command[0]} cannot be run: {error}") from error
        out.seek(0)
        err.seek(0)
        if code != 0:
            said = err.read().decode(errors="replace").strip()
            first = next((line for line in said.splitlines() if "error" in line), said)
            raise BuildError(f"{command[0]} failed with exit status {code}: {first[:300]}")
        return out.read().decode(errors="replace")
