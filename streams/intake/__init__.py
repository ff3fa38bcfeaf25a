"""The first stage: events into customers' states, and states into intents."""
