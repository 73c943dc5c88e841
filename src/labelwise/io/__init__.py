"""Files in and out: acquisitions, NIfTI series, results, and the noise level of a series."""
