"""`python -m labelwise` is the command `labelwise`."""

from labelwise.cli.main import main

if __name__ == "__main__":
    main()
