"""The command `labelwise`, also as `python -m labelwise`.

The imports of the commands take about a second. Until they are done, an interrupt ends the process.
"""

import os
import sys

from labelwise import interrupts


def main() -> None:
    """The entry point of the command `labelwise`."""
    interrupts.leave_at_once()
    try:
        from labelwise.cli.main import main as run
    except Exception as error:  # such as an environment variable that JAX refuses
        if os.environ.get("LABELWISE_DEBUG") == "1":
            raise
        words = " ".join(str(error).split())
        print(
            f"labelwise: cannot start ({type(error).__name__}: {words}); LABELWISE_DEBUG=1 shows "
            "where",
            file=sys.stderr,
        )
        sys.exit(2)
    run()


if __name__ == "__main__":
    main()
