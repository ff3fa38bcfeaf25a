import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.nio.ByteBuffer;
import java.util.Map;
import java.util.Properties;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.atomic.AtomicLong;
import org.apache.kafka.clients.consumer.ConsumerConfig;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.Topology;
import org.apache.kafka.streams.processor.api.Processor;
import org.apache.kafka.streams.processor.api.ProcessorContext;
import org.apache.kafka.streams.processor.api.Record;
import org.apache.kafka.streams.state.KeyValueStore;
import org.apache.kafka.streams.state.Stores;

/** The intake workload on Kafka Streams: BOOTSTRAP EVENTS OUTPUT COUNT STATE_DIR. Prints one JSON line. */
public final class Intake {
    static final int WIDTH = 24; // floats of a customer's state
    static final ObjectMapper JSON = new ObjectMapper();
    static final AtomicLong BEGAN = new AtomicLong();
    static final AtomicLong SEEN = new AtomicLong();
    static final CountDownLatch ALL = new CountDownLatch(1);

    static final class Step implements Processor<String, byte[], String, byte[]> {
        private final long count;
        private ProcessorContext<String, byte[]> context;
        private KeyValueStore<String, byte[]> store;

        Step(long count) {
            this.count = count;
        }

        @Override
        public void init(ProcessorContext<String, byte[]> given) {
            context = given;
            store = given.getStateStore("floats");
        }

        @Override
        public void process(Record<String, byte[]> record) {
            BEGAN.compareAndSet(0, System.nanoTime());
            try {
                JsonNode event = JSON.readTree(record.value());
                double total = event.get("properties").get("total").doubleValue();
                byte[] packed = store.get(record.key());
                ByteBuffer old = packed == null ? ByteBuffer.allocate(WIDTH * 8) : ByteBuffer.wrap(packed);
                ByteBuffer made = ByteBuffer.allocate(WIDTH * 8);
                for (int i = 0; i < WIDTH; i++) {
                    made.putDouble(old.getDouble() * 0.98 + total);
                }
                store.put(record.key(), made.array());
                String message = event.get("messageId").textValue();
                if (Long.parseLong(message) % 10 == 0) {
                    Map<String, Object> out = Map.of("customer", event.get("userId").textValue(), "message", message, "value", made.getDouble(0));
                    context.forward(record.withValue(JSON.writeValueAsBytes(out)));
                }
            } catch (java.io.IOException error) {
                throw new java.io.UncheckedIOException(error);
            }
            if (SEEN.incrementAndGet() == count) {
                ALL.countDown();
            }
        }
    }

    public static void main(String[] arguments) throws Exception {
        long count = Long.parseLong(arguments[3]);
        Properties settings = new Properties();
        settings.put(StreamsConfig.APPLICATION_ID_CONFIG, "streams-" + arguments[1]);
        settings.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, arguments[0]);
        settings.put(StreamsConfig.STATE_DIR_CONFIG, arguments[4]);
        settings.put(StreamsConfig.REPLICATION_FACTOR_CONFIG, 1);
        settings.put(ConsumerConfig.AUTO_OFFSET_RESET_CONFIG, "earliest");

        Topology topology = new Topology();
        topology.addSource("in", Serdes.String().deserializer(), Serdes.ByteArray().deserializer(), arguments[1]);
        topology.addProcessor("step", () -> new Step(count), "in");
        topology.addStateStore(
            Stores.keyValueStoreBuilder(Stores.persistentKeyValueStore("floats"), Serdes.String(), Serdes.ByteArray()).withCachingEnabled(),
            "step");
        topology.addSink("out", arguments[2], Serdes.String().serializer(), Serdes.ByteArray().serializer(), "step");

        KafkaStreams streams = new KafkaStreams(topology, settings);
        streams.setUncaughtExceptionHandler(error -> {
            error.printStackTrace();
            Runtime.getRuntime().halt(1);
            return null;
        });
        streams.start();
        ALL.await();
        streams.close(); // flushes the store's cache, the changelog and the outputs, then commits
        double seconds = (System.nanoTime() - BEGAN.get()) / 1e9;
        System.out.println("{\"seconds\": " + seconds + ", \"events\": " + SEEN.get() + "}");
    }
}
