"""The stage that learns from everybody's events and publishes what it learned."""
