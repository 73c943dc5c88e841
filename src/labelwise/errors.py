"""The error that is meant for the person, importable without NumPy and JAX."""


class InputError(ValueError):
    """Invalid input; the message states what was expected, what was given, and the remedy.

    The command line prints it and exits with status 2. Every other exception is a bug.
    """
