"""Where a run lives: its folder, record, lease, heartbeat, stop request and spool. Standard library only."""
