"""Checkpoints: a folder per save, a manifest as commit, verified before anything is read."""
