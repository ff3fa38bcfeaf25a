"""Studies and blind readings: not part of the service."""
