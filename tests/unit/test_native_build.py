"""Where the compiled kernels come from: a compiler, and a cache that is not trusted blindly."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from uellm_cli.engines.inflight import native
from uellm_cli.engines.inflight.native import build, library

COMPILER = os.environ.get("CXX") or next(
    (name for name in ("c++", "g++", "clang++") if shutil.which(name)), None
)
pytestmark = pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler")

ANSWER = 'extern "C" __attribute__((visibility("default"))) int answer() { return 42; }'


@pytest.fixture(autouse=True)
def _forgotten(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`load` tries anew, in the test and after it."""
    monkeypatch.delenv("UELLM_KERNELS", raising=False)
    library._attempt.cache_clear()
    yield
    library._attempt.cache_clear()


@pytest.fixture
def quick_build(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Builds take no time to speak of, and go to the folder that is returned."""
    source = tmp_path / "source"
    source.mkdir()
    (source / build.MAIN_SOURCE).write_text(ANSWER)
    monkeypatch.setattr(build, "SOURCES", source)
    monkeypatch.setenv("UELLM_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "kernels"


def built(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def answer() -> int:
    number: int = build.open_library("generic").answer()
    return number


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def sealed(content: bytes) -> bytes:
    return content + hashlib.sha256(content).digest()


def compiled(tmp_path: Path, number: int = 42) -> bytes:
    """A library, sealed; `number` is what it answers."""
    source = build.SOURCES / build.MAIN_SOURCE
    source.write_text(ANSWER.replace("42", str(number)))
    path = build._compiled(build._compiler(), "generic", tmp_path / "compiled.so")
    source.write_text(ANSWER)
    return path.read_bytes()


def kept(folder: Path, content: bytes) -> Path:
    """A file where the library is looked for, which this process has not loaded before."""
    folder.mkdir(mode=0o700, parents=True)
    path = folder / build._file_name(build._compiler(), "generic")
    path.write_bytes(content)
    path.chmod(0o755)
    return path


# --- what is kept ---------------------------------------------------------------------------------


def test_kernels_are_built_once_and_leave_nothing_else(quick_build: Path) -> None:
    assert answer() == 42
    (only,) = quick_build.iterdir()
    written = only.stat().st_mtime_ns
    assert answer() == 42
    (only,) = quick_build.iterdir()
    assert only.stat().st_mtime_ns == written


def test_changed_source_is_another_file(quick_build: Path) -> None:
    assert answer() == 42
    (build.SOURCES / build.MAIN_SOURCE).write_text(ANSWER.replace("42", "43"))
    assert answer() == 43
    assert len(built(quick_build)) == 2


def test_another_machine_with_the_same_home_has_its_own_file(
    quick_build: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert answer() == 42
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert answer() == 42
    assert len(built(quick_build)) == 2


def test_builds_at_the_same_time_do_not_disturb_each_other(quick_build: Path) -> None:
    answers: list[int] = []
    threads = [threading.Thread(target=lambda: answers.append(answer())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [42] * 4
    assert len(built(quick_build)) == 1


def nothing(_: bytes) -> bytes:
    return b""


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]  # to load such a file ends the process: SIGBUS


def all_but_the_end(content: bytes) -> bytes:
    return content[:-1]


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def for_another_loader(_: bytes) -> bytes:
    return sealed(b"whole, but no library of this machine's")


@pytest.mark.parametrize("damage", [nothing, half, all_but_the_end, flipped, for_another_loader])
def test_damaged_library_is_replaced_once(
    damage: Callable[[bytes], bytes], quick_build: Path, tmp_path: Path
) -> None:
    good = compiled(tmp_path)
    path = kept(quick_build, damage(good))
    assert answer() == 42
    assert path.read_bytes() == good
    written = path.stat().st_mtime_ns
    assert answer() == 42
    assert path.stat().st_mtime_ns == written


def test_cache_whose_programs_may_not_be_run_is_built_into_once(
    quick_build: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = ctypes.CDLL

    def load_elsewhere(path: str) -> ctypes.CDLL:
        if Path(path).parent == quick_build:
            raise OSError("failed to map segment from shared object")
        return load(path)

    monkeypatch.setattr(ctypes, "CDLL", load_elsewhere)
    assert answer() == 42
    (only,) = quick_build.iterdir()
    written = only.stat().st_mtime_ns
    assert answer() == 42
    assert only.stat().st_mtime_ns == written


def test_what_killed_builds_left_behind_is_swept_and_nothing_else(quick_build: Path) -> None:
    quick_build.mkdir(parents=True, mode=0o700)
    for name in ("building-old.tmp", "building-new.tmp", "mine.tmp"):
        (quick_build / name).mkdir()
        (quick_build / name / "kernels.so").write_text("half of it")
    (quick_build / "kernels-generic-0.so").write_text("another version's")
    yesterday = time.time() - 25 * 3600
    for path in quick_build.iterdir():
        if path.name != "building-new.tmp":
            os.utime(path, (yesterday, yesterday))
    assert answer() == 42
    left = {"building-new.tmp", "mine.tmp", "kernels-generic-0.so"}
    assert left < {*built(quick_build)}
    assert len(built(quick_build)) == len(left) + 1


# --- whom it is trusted to ------------------------------------------------------------------------


def test_folders_are_made_for_this_user_alone_whatever_the_umask(quick_build: Path) -> None:
    before = os.umask(0)
    try:
        assert answer() == 42
    finally:
        os.umask(before)
    assert mode(quick_build) == mode(quick_build.parent) == 0o700
    (only,) = quick_build.iterdir()
    assert not mode(only) & 0o022


@pytest.mark.parametrize("is_folder", [True, False])
@pytest.mark.parametrize("writable", [0o775, 0o757])
def test_library_that_others_may_have_written_is_not_loaded(
    is_folder: bool, writable: int, quick_build: Path, tmp_path: Path
) -> None:
    path = kept(quick_build, compiled(tmp_path, 666))
    (quick_build if is_folder else path).chmod(writable)
    assert answer() == 42


def test_library_that_only_this_user_may_have_written_is_loaded_as_it_is(
    quick_build: Path, tmp_path: Path
) -> None:
    kept(quick_build, compiled(tmp_path, 666))
    assert answer() == 666


@pytest.mark.parametrize(
    ("owner", "bits", "is_trusted"),
    [
        (1000, 0o700, True),
        (1000, 0o755, True),
        (0, 0o755, True),  # a system's cache, for all its users
        (0, 0o777, False),
        (0, 0o775, False),
        (1000, 0o777, False),
        (1001, 0o700, False),
        (1001, 0o755, False),
    ],
)
def test_only_this_user_and_root_are_trusted(
    owner: int, bits: int, is_trusted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    status = os.stat_result((stat.S_IFDIR | bits, 0, 0, 1, owner, 1000, 0, 0, 0, 0))
    if is_trusted:
        build._check_owner(status)
    else:
        with pytest.raises(PermissionError):
            build._check_owner(status)


# --- when something fails -------------------------------------------------------------------------


def test_cache_that_cannot_be_written_is_done_without(quick_build: Path) -> None:
    quick_build.parent.write_text("a file where the folder should be")
    assert answer() == 42


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="there is no /proc")
@pytest.mark.usefixtures("quick_build")
def test_cache_on_a_read_only_file_system_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UELLM_CACHE_DIR", "/proc")  # where not even root can make a folder
    assert answer() == 42


def test_library_in_a_read_only_cache_is_used(
    quick_build: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert answer() == 42
    monkeypatch.setattr(build, "_compiled", None)
    quick_build.chmod(0o500)
    assert answer() == 42


def test_no_temporary_folder_is_needed_where_the_cache_can_be_written(
    quick_build: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    monkeypatch.setenv("TMPDIR", "/nowhere")
    assert answer() == 42
    assert len(built(quick_build)) == 1


def no_folder_at_all(folder: Path, patch: pytest.MonkeyPatch) -> str:
    folder.parent.write_text("a file where the folder should be")
    patch.setattr(tempfile, "tempdir", "/nowhere")
    return "no folder to build the kernels in"


def no_memory_files(_: Path, patch: pytest.MonkeyPatch) -> str:
    patch.delattr(os, "memfd_create", raising=False)
    patch.setattr(tempfile, "tempdir", "/nowhere")
    return "cannot be run"


def no_readable_source(_: Path, __: pytest.MonkeyPatch) -> str:
    (build.SOURCES / "more.hpp").mkdir()
    return "source cannot be read"


def no_output(_: Path, patch: pytest.MonkeyPatch) -> str:
    patch.setenv("CXX", "/bin/true")
    return "what was compiled cannot be read"


def no_library(folder: Path, patch: pytest.MonkeyPatch) -> str:
    false_compiler = folder.parent.parent / "compiler"
    false_compiler.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && exit\n'
        'until [ "$1" = -o ]; do shift; done\necho > "$2"\n'
    )
    false_compiler.chmod(0o755)
    patch.setenv("CXX", str(false_compiler))
    return "cannot be loaded"


def full_disk(_: Path, patch: pytest.MonkeyPatch) -> str:
    def refuse(_: int) -> None:
        raise OSError(28, "No space left on device")

    patch.setattr(os, "fsync", refuse)
    return "No space left"


def failing_compiler(_: Path, patch: pytest.MonkeyPatch) -> str:
    patch.setenv("CXX", "/bin/false")
    return "failed with exit status 1"


def missing_compiler(_: Path, patch: pytest.MonkeyPatch) -> str:
    patch.setenv("CXX", "/no/such/compiler")
    return "cannot be run"


def compiler_that_is_a_folder(folder: Path, patch: pytest.MonkeyPatch) -> str:
    patch.setenv("CXX", str(folder.parent.parent))
    return "cannot be run"


def half_a_quotation(_: Path, patch: pytest.MonkeyPatch) -> str:
    patch.setenv("CXX", "'")
    return "is no command"


def no_compiler(_: Path, patch: pytest.MonkeyPatch) -> str:
    patch.delenv("CXX", raising=False)
    patch.setenv("PATH", "/nowhere")
    return "no C++ compiler"


def source_that_does_not_compile(_: Path, __: pytest.MonkeyPatch) -> str:
    (build.SOURCES / build.MAIN_SOURCE).write_text("int x = ;")
    return "error"


@pytest.mark.parametrize(
    "trouble",
    [
        no_folder_at_all,
        no_memory_files,
        no_readable_source,
        no_output,
        no_library,
        full_disk,
        failing_compiler,
        missing_compiler,
        compiler_that_is_a_folder,
        half_a_quotation,
        no_compiler,
        source_that_does_not_compile,
    ],
)
def test_trouble_means_no_kernels_and_a_reason(
    trouble: Callable[[Path, pytest.MonkeyPatch], str],
    quick_build: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reason = trouble(quick_build, monkeypatch)
    assert native.load() is None
    assert reason in str(native.why_not())


def test_source_that_does_not_compile_leaves_nothing_behind(quick_build: Path) -> None:
    (build.SOURCES / build.MAIN_SOURCE).write_text("int x = ;")
    assert native.load() is None
    assert built(quick_build) == []


def is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{process}/stat")
    return not (state.exists() and state.read_text().rpartition(")")[2].split()[0] == "Z")


def test_compiler_that_never_ends_is_given_up_and_what_it_started_is_ended(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    slow = tmp_path / "slow"
    slow.write_text(f"#!/bin/sh\nsleep 60 &\necho $! > {tmp_path}/child\nwait\n")
    slow.chmod(0o755)
    monkeypatch.setenv("CXX", str(slow))
    monkeypatch.setattr(build, "TIMEOUT_S", 1.0)
    assert native.load() is None
    assert "more than 1 s" in str(native.why_not())
    child = int((tmp_path / "child").read_text())
    until = time.monotonic() + 5
    while is_running(child) and time.monotonic() < until:
        time.sleep(0.01)
    assert not is_running(child)
