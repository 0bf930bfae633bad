package esker.flink;

import java.time.Duration;
import org.apache.flink.api.common.eventtime.WatermarkStrategy;
import org.apache.flink.api.common.serialization.SimpleStringEncoder;
import org.apache.flink.api.common.typeinfo.Types;
import org.apache.flink.api.connector.source.util.ratelimit.RateLimiterStrategy;
import org.apache.flink.configuration.MemorySize;
import org.apache.flink.connector.datagen.source.DataGeneratorSource;
import org.apache.flink.connector.datagen.source.GeneratorFunction;
import org.apache.flink.connector.file.sink.FileSink;
import org.apache.flink.core.fs.Path;
import org.apache.flink.streaming.api.environment.StreamExecutionEnvironment;
import org.apache.flink.streaming.api.functions.sink.filesystem.RollingPolicy;
import org.apache.flink.streaming.api.functions.sink.filesystem.bucketassigners.BasePathBucketAssigner;
import org.apache.flink.streaming.api.functions.sink.filesystem.rollingpolicies.DefaultRollingPolicy;
import org.apache.flink.streaming.api.functions.sink.filesystem.rollingpolicies.OnCheckpointRollingPolicy;

/**
 * Writes streams of numbered lines with {@code FileSink}, each stream into a folder of its own.
 *
 * <p>{@code --streams} lists them as {@code name:count:per-second:line-bytes:roll-seconds:parallelism},
 * separated by commas. A stream is the lines {@code 0..count}, so the test knows all of them
 * beforehand. Zero roll seconds rolls on every checkpoint; otherwise an in-progress file lasts that
 * long, over many checkpoints, each of which names the upload that was begun, the parts that it has
 * and the tail that is too short for a part. {@code --hurry} drops the rates: what is left then
 * comes as fast as it can.
 */
public final class SinkJob {
    public static void main(String[] args) throws Exception {
        Arguments arguments = new Arguments(args);
        StreamExecutionEnvironment env = StreamExecutionEnvironment.getExecutionEnvironment();
        for (String stream : arguments.get("streams").split(",")) {
            add(env, stream.split(":"), arguments.get("folder"), arguments.has("hurry"));
        }
        env.execute("sink");
    }

    private static void add(StreamExecutionEnvironment env, String[] stream, String folder, boolean hurry) {
        String name = stream[0];
        double perSecond = Double.parseDouble(stream[2]);
        int lineBytes = Integer.parseInt(stream[3]);
        int parallelism = Integer.parseInt(stream[5]);
        GeneratorFunction<Long, String> lines = number -> line(number, lineBytes);
        FileSink<String> sink = FileSink.forRowFormat(
                        new Path(folder, name), new SimpleStringEncoder<String>())
                .withBucketAssigner(new BasePathBucketAssigner<>())
                .withRollingPolicy(rolling(Integer.parseInt(stream[4])))
                .withBucketCheckInterval(500)
                .build();
        env.fromSource(
                        new DataGeneratorSource<>(
                                lines,
                                Long.parseLong(stream[1]),
                                hurry ? RateLimiterStrategy.noOp() : RateLimiterStrategy.perSecond(perSecond),
                                Types.STRING),
                        WatermarkStrategy.noWatermarks(),
                        name)
                .setParallelism(parallelism)
                .uid(name)
                .sinkTo(sink)
                .setParallelism(parallelism)
                .uid(name + "-sink");
    }

    private static RollingPolicy<String, String> rolling(int seconds) {
        if (seconds == 0) {
            return OnCheckpointRollingPolicy.build();
        }
        return DefaultRollingPolicy.builder()
                .withRolloverInterval(Duration.ofSeconds(seconds))
                .withInactivityInterval(Duration.ofSeconds(seconds))
                .withMaxPartSize(MemorySize.ofMebiBytes(64))
                .build();
    }

    /** The number, a tab, and hexadecimal digits that only this number has, cut to {@code bytes}. */
    private static String line(long number, int bytes) {
        String digits = String.format("%016x", Tally.mix(number));
        return (number + "\t" + digits.repeat(bytes / digits.length() + 1)).substring(0, bytes);
    }
}
