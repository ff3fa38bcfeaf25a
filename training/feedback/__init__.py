"""What was sent and what followed, kept and weighed."""
