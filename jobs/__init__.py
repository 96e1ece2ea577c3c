"""Job files, ready to run: `orchestrator init --list`."""
