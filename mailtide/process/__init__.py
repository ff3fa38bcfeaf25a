"""Being a process: children, logs, shutdown, the words of a failure."""
