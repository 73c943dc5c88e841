"""Pictures: results in, matplotlib figures out. Nothing here computes, loads or saves."""
