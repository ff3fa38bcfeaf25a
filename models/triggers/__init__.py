"""When a mail is due: rules, conditions, and the pass over a batch of events."""
