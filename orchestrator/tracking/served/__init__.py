"""Python files that MLflow stores beside a compressed model and runs to serve it (its models-from-code form).

A format joins with a file of its name here, which needs none of this package, and a line in
`orchestrator.tracking.artifact_model.SERVED`.
"""
