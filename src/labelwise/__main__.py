"""The command `labelwise`, also as `python -m labelwise`.

Until its imports are done, an interrupt ends the process.
"""

from labelwise import interrupts


def main() -> None:
    """The entry point of the command `labelwise`."""
    interrupts.leave_at_once()
    from labelwise.cli.main import main as run

    run()


if __name__ == "__main__":
    main()
