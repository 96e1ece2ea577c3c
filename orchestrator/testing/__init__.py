"""Lent to plug-in authors: a spawner of ranks and conformance suites."""
