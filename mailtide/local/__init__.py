"""A Kafka and a mail server of our own, where the settings name none."""
