"""The log file of a command: its notes, stages, errors and exit status, with times in UTC.

Lines are appended, so that several commands may share a file:

    2026-11-28T12:16:02Z 4711 command: labelwise fit dwi.nii.gz --model ivim --out maps
    2026-11-28T12:16:09Z 4711 note: residuals are 0.72 times what sigma predicts
    2026-11-28T12:16:15Z 4711 fitting: 24,310 of 24,310 in 5.8 s
    2026-11-28T12:16:16Z 4711 exit status: 0
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from labelwise.errors import InputError
from labelwise.formatting import one_line, printable

_LINE = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ \d+ ")
_open: list[TextIO] = []  # the log file of this process, or none


def begin(path: Path, command: str) -> None:
    """Append what follows to a file; a command that another one calls goes on in the same file.

    Raises:
        InputError: if the file is there and no log of labelwise, or cannot be written.
    """
    if not _open:
        try:
            with open(path, "a+b") as file:
                file.seek(0)
                begins = file.read(40)
            if begins and not _LINE.match(begins):
                raise InputError(
                    f"--log-file {path}: is there and is no log of labelwise; choose another name"
                )
            _open.append(open(path, "a", encoding="utf-8"))  # noqa: SIM115 (closed by `end`)
        except OSError as error:
            raise InputError(
                f"--log-file {path}: cannot be written ({error.strerror}); choose another place"
            ) from error
    write("command", command)


def write(what: str, words: str) -> None:
    """Add a line, if there is a log file; a full disk does not end the command."""
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    for file in _open:
        with suppress(OSError):
            file.write(f"{now} {os.getpid()} {what}: {printable(one_line(words))}\n")
            file.flush()


def stages() -> Callable[[str, int, int, str], None]:
    """A `Progress` that adds a line when a stage has ended."""
    begun: dict[str, float] = {}
    ended: set[str] = set()

    def log(what: str, done: int, total: int, words: str) -> None:
        start = begun.setdefault(what, time.monotonic())
        if done >= total and what not in ended:
            ended.add(what)
            took = f"{done:,.0f} of {total:,.0f} in {time.monotonic() - start:.1f} s"
            write(what, f"{took}{'; ' * bool(words)}{words}")

    return log


def end() -> None:
    """Close the file."""
    while _open:
        with suppress(OSError):
            _open.pop().close()
