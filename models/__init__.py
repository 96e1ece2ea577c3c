"""Plain PyTorch models and their declarations. Nothing here imports `orchestrator`."""
