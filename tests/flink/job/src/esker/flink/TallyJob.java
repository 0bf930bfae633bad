package esker.flink;

import org.apache.flink.api.common.eventtime.WatermarkStrategy;
import org.apache.flink.api.common.typeinfo.Types;
import org.apache.flink.api.connector.source.util.ratelimit.RateLimiterStrategy;
import org.apache.flink.connector.datagen.source.DataGeneratorSource;
import org.apache.flink.connector.datagen.source.GeneratorFunction;
import org.apache.flink.streaming.api.datastream.DataStream;
import org.apache.flink.streaming.api.datastream.SingleOutputStreamOperator;
import org.apache.flink.streaming.api.environment.StreamExecutionEnvironment;

/**
 * Counts the numbers {@code 0..count} twice, under two different keys, and writes what it counted
 * when the numbers end.
 *
 * <p>Numbers, keys and state are functions of the arguments alone, so the test knows every line of
 * the result beforehand: a number that a restore lost or repeated shows as a wrong line. The pace
 * is no part of the state, so a resumed job may run at another one. {@code --pause-micros} has the
 * second count rest after each number: above what it leaves, numbers pile up before it.
 */
public final class TallyJob {
    public static void main(String[] args) throws Exception {
        Arguments arguments = new Arguments(args);
        long count = arguments.getLong("count");
        double perSecond = arguments.getDouble("per-second");
        long keys = arguments.getLong("keys");
        String results = arguments.get("results");
        long pauseMicros = arguments.has("pause-micros") ? arguments.getLong("pause-micros") : 0;

        StreamExecutionEnvironment env = StreamExecutionEnvironment.getExecutionEnvironment();
        GeneratorFunction<Long, Long> itself = number -> number;
        DataStream<Long> numbers = env.fromSource(
                        new DataGeneratorSource<>(
                                itself, count, RateLimiterStrategy.perSecond(perSecond), Types.LONG),
                        WatermarkStrategy.noWatermarks(),
                        "numbers")
                .uid("numbers");

        SingleOutputStreamOperator<Long> low = numbers
                .keyBy(number -> number % keys, Types.LONG)
                .process(new Tally(0))
                .uid("low")
                .name("low");
        SingleOutputStreamOperator<Long> high = low
                .keyBy(number -> number / 3 % keys, Types.LONG)
                .process(new Tally(pauseMicros))
                .uid("high")
                .name("high");

        low.getSideOutput(Tally.TOTALS).process(new ResultFiles(results, "low")).uid("low-results");
        high.getSideOutput(Tally.TOTALS).process(new ResultFiles(results, "high")).uid("high-results");
        env.execute("tally");
    }
}
