"""Matplotlib figures of results. Nothing is computed, loaded or saved here."""
