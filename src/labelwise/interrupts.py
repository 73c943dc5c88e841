"""Interrupts of the command `labelwise`: Ctrl-C, SIGTERM, and SIGHUP of a closed terminal.

An interrupt ends the command with one sentence and the exit status 128 + its number (130 for
Ctrl-C). Python raises `KeyboardInterrupt` in the main thread only, drops it in some callbacks, and
libraries may turn it into another error; therefore the signal is recorded, too.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")
_ALARM = getattr(signal, "SIGALRM", None)  # not on Windows
_received: list[int] = []


def leave_at_once() -> None:
    """End the process on an interrupt, without cleaning up: for imports, and after the work."""
    _handle(_leave)
    if _ALARM:
        signal.setitimer(signal.ITIMER_REAL, 0)


def raise_them() -> None:
    """Record an interrupt, and raise `KeyboardInterrupt` in the main thread."""
    _handle(_raise)
    sys.unraisablehook = _send_again


def check() -> None:
    """Raise `KeyboardInterrupt` after an interrupt; for long work in any thread."""
    if _received:
        raise KeyboardInterrupt


def received() -> bool:
    """Whether there was an interrupt."""
    return bool(_received)


def status() -> int:
    """The exit status after an interrupt."""
    return 128 + (_received[-1] if _received else signal.SIGINT)


def sentence() -> str:
    """What is printed after an interrupt."""
    name = signal.Signals(status() - 128).name
    return "stopped by " + ("Ctrl-C" if name == "SIGINT" else name)


def _handle(handler: Callable[[int, FrameType | None], None]) -> None:
    for name in _NAMES:
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        # what is ignored stays ignored: nohup, and background jobs of a script
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)


def _leave(number: int, frame: FrameType | None) -> None:
    _received.append(number)
    os.write(2, f"labelwise: {sentence()}\n".encode())
    os._exit(status())


def _raise(number: int, frame: FrameType | None) -> None:
    _received.append(number)
    raise KeyboardInterrupt


def _send_again(dropped: sys.UnraisableHookArgs) -> None:
    """Repeat an interrupt that Python dropped, in a callback of its garbage collection."""
    if isinstance(dropped.exc_value, KeyboardInterrupt) and _received and _ALARM:
        signal.signal(_ALARM, lambda number, frame: _raise(_received[-1], frame))
        signal.setitimer(signal.ITIMER_REAL, 0.05)
    else:
        sys.__unraisablehook__(dropped)
