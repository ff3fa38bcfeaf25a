"""Publishing a source of events to ``customer.events``."""
