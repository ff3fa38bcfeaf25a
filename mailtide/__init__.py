"""The front door: command line, services, demo, and a Kafka and a mail server where none is named."""
