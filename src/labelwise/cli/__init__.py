"""The command `labelwise`."""
