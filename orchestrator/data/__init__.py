"""Data sets, their splits and digests, and the order of samples. Torch comes with `load` only."""
