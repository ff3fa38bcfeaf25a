"""The training service: what was sent and what followed becomes a better adapter for each cluster."""
