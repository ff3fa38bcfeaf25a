"""Everything that speaks to Kafka below the services; on schemas alone."""
