"""What is meant for the person, importable without NumPy and JAX: an error, an outdated name."""

import warnings

OLD_NAMES_END = "0.3"
"""The version of labelwise that accepts no outdated names any more."""


class InputError(ValueError):
    """Invalid input; the message states what was expected, what was given, and the remedy.

    The command line prints it and exits with status 2. Every other exception is a bug.
    """


def warn_outdated(what: str, name: str) -> None:
    """Warn that an outdated name was given, which goes on working for a while.

    Args:
        what: the outdated name, and where it was given.
        name: the name of today.

    Warns:
        UserWarning: always.
    """
    warnings.warn(
        f"{what}: is called {name!r} now; the old name works until version {OLD_NAMES_END}",
        stacklevel=3,
    )
