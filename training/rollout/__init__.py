"""A release on its way into service, and back where it does harm."""
