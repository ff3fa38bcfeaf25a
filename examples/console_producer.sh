#!/usr/bin/env bash
# Publish events with Kafka's own console producer.
#
#   KAFKA_HOME=/opt/kafka MAILTIDE_KAFKA=127.0.0.1:9092 examples/console_producer.sh
#
# Without KAFKA_HOME it takes kafka-console-producer.sh from PATH, else the copy of Kafka's tools that Mailtide fetches for
# itself (PYTHON names the Python that Mailtide is installed in; .venv/bin/python is tried first). The topic must exist:
# `mailtide topics create`, or `mailtide up`, whose own Kafka is named `kafka` in .mailtide/run/endpoints.json.
#
# A line is the customer's id, a tab, and one event as JSON. The id becomes the record's key, so that a customer's events stay
# in order on the partition where Mailtide looks for them.
set -eu

kafka=${MAILTIDE_KAFKA:-127.0.0.1:9092}
topic=${MAILTIDE_KAFKA_PREFIX:-}customer.events

if [ -n "${KAFKA_HOME:-}" ]; then
  producer=("$KAFKA_HOME/bin/kafka-console-producer.sh")
elif command -v kafka-console-producer.sh >/dev/null; then
  producer=(kafka-console-producer.sh)
else
  python=${PYTHON:-.venv/bin/python}
  own=$("$python" -c 'from mailtide.local.jars import TOOLS, java, kafka_jars
print(java(), ":".join(map(str, kafka_jars(TOOLS))), sep="\n")')
  producer=("${own%%$'\n'*}" -cp "${own#*$'\n'}" org.apache.kafka.tools.ConsoleProducer)
fi

now=$(date -u +%Y-%m-%dT%H:%M:%SZ)
run=$(date +%s)-$$ # so that a second run brings new events; the same messageId again counts once

{
  printf 'c-4\t{"messageId": "%s", "type": "identify", "userId": "c-4", "timestamp": "%s", "traits": {"email": "li@example.com", "firstName": "Li", "consent": {"marketing": true}}}\n' "$run-1" "$now"
  printf 'c-4\t{"messageId": "%s", "type": "track", "event": "Product Added", "userId": "c-4", "timestamp": "%s", "properties": {"cart_id": "k-1", "product_id": "p-3", "name": "Garden Trowel", "category": "Garden", "price": 14.0, "quantity": 1}}\n' "$run-2" "$now"
  printf 'c-5\t{"messageId": "%s", "type": "track", "event": "Product Viewed", "userId": "c-5", "timestamp": "%s", "properties": {"product_id": "p-3", "name": "Garden Trowel", "category": "Garden", "price": 14.0}}\n' "$run-3" "$now"
} | "${producer[@]}" --bootstrap-server "$kafka" --topic "$topic" --reader-property parse.key=true --sync
