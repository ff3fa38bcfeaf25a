"""The intake workload on Quix Streams with its defaults: ``python quix_intake.py BOOTSTRAP EVENTS OUTPUT COUNT STATE_DIR``.

Prints one JSON line: ``seconds`` from the first record to the last commit.
"""

from __future__ import annotations

import json
import sys
import time

from quixstreams import Application

WIDTH = 24  # floats of a customer's state


def main() -> None:
    bootstrap, events, output, count, folder = sys.argv[1:]
    began: list[float] = []
    seen = [0]

    def step(event: dict, state) -> dict:
        if not began:
            began.append(time.perf_counter())
        seen[0] += 1
        if seen[0] == int(count):
            app.stop()  # after this record: a last checkpoint, then run() returns
        old = state.get("v", default=[0.0] * WIDTH)
        total = event["properties"]["total"]
        new = [value * 0.98 + total for value in old]
        state.set("v", new)
        return {"customer": event["userId"], "message": event["messageId"], "value": new[0]}

    app = Application(
        broker_address=bootstrap, consumer_group="quix-" + events, auto_offset_reset="earliest", state_dir=folder, loglevel="WARNING"
    )
    frame = app.dataframe(app.topic(events, value_deserializer="json"))
    frame = frame.apply(step, stateful=True)
    frame = frame.filter(lambda made: int(made["message"]) % 10 == 0)
    frame.to_topic(app.topic(output, value_serializer="json"))
    app.run()  # its count= counts outputs and keeps each
    sys.stdout.write(json.dumps({"seconds": time.perf_counter() - began[0], "events": seen[0]}) + "\n")


if __name__ == "__main__":
    main()
