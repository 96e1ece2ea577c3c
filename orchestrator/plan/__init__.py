"""Does it fit? Pure arithmetic over a job, what model and data say of themselves, and what is there.

Imports neither torch, ray nor mlflow.
"""
