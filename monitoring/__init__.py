"""Consumer lag: what it is, what it means, and what it means for mail."""
