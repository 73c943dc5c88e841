"""Cohorts in BIDS: datasets in, derivatives out, many subjects at a time."""
