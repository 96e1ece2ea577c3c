"""The training engine: one loop that runs the same under Ray, under torchrun and in a plain test."""
