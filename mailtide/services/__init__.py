"""What runs for long: ``up`` with its supervisor, the worker with its watchdog and health."""
