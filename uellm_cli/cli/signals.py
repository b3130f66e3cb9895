"""Ctrl-C and its like: the first asks a run to stop after its step, the second ends it at once.

Python runs a signal's handler only between its own instructions, and a step of a large model may
take long. So a thread of its own listens for the second one; it may end the process at any moment,
which loses no more than a power cut would: the journal is the truth.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from uellm_cli.errors import ExitCode
from uellm_cli.executor.stop import Stop

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SHOW_CURSOR = b"\x1b[?25h"


@contextmanager
def stopping(stop: Stop, on_stop: Callable[[], None]) -> Iterator[None]:
    """A block in which signals go to `stop`; `on_stop` is called when the first is taken.

    Outside of the main thread signals cannot be taken, and are left as they are.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def asked(_signal: int, _frame: object) -> None:
        try:
            # The terminal may be what has gone, or be in the middle of being written to.
            with suppress(OSError, RuntimeError):
                on_stop()
        finally:
            stop.request()

    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    # What is ignored already shall be: `nohup` has a run outlive its terminal that way.
    heeded = [number for number in STOPPING if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, asked) for number in heeded}
    wakeup_before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_end_at_second, args=(reader,), daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup_before)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(writer)


def _end_at_second(reader: int) -> None:
    """Counts the signals that the system writes to a pipe, a byte each, until it is closed."""
    taken = 0
    while byte := os.read(reader, 1):
        taken += byte[0] in STOPPING
        if taken == 2:
            with suppress(OSError, ValueError):
                if sys.stderr.isatty():
                    os.write(sys.stderr.fileno(), _SHOW_CURSOR)
                os.write(2, b"\nStopped at once. What was kept is safe.\n")
            os._exit(ExitCode.INTERRUPTED)
    os.close(reader)
