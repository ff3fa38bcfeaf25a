"""What turns facts into decisions and words, as plain functions: no Kafka, no network."""
