"""The MLflow page of a finished run, looked at with a real browser."""
