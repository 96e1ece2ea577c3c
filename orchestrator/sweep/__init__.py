"""Searching over a job: which points, which of them are feasible, where they run, when they stop, what was found."""
