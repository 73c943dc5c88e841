"""What a study found, in words and as one page."""
