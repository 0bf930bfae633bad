package esker.flink;

import java.nio.ByteBuffer;
import java.util.Arrays;
import java.util.Map;
import java.util.Random;
import java.util.concurrent.TimeUnit;
import org.apache.flink.api.common.functions.OpenContext;
import org.apache.flink.api.common.state.ListState;
import org.apache.flink.api.common.state.ListStateDescriptor;
import org.apache.flink.api.common.state.MapState;
import org.apache.flink.api.common.state.MapStateDescriptor;
import org.apache.flink.api.common.state.ValueState;
import org.apache.flink.api.common.state.ValueStateDescriptor;
import org.apache.flink.api.common.typeinfo.PrimitiveArrayTypeInfo;
import org.apache.flink.api.common.typeinfo.Types;
import org.apache.flink.api.java.tuple.Tuple3;
import org.apache.flink.runtime.state.FunctionInitializationContext;
import org.apache.flink.runtime.state.FunctionSnapshotContext;
import org.apache.flink.streaming.api.checkpoint.CheckpointedFunction;
import org.apache.flink.streaming.api.functions.KeyedProcessFunction;
import org.apache.flink.util.Collector;
import org.apache.flink.util.OutputTag;

/**
 * Keeps three kinds of state that have to agree at the end, and passes its input on.
 *
 * <ul>
 *   <li>Keyed totals: count, sum and an order-free digest of the numbers of a key.
 *   <li>Keyed ballast: the last few numbers of a key, each with noise that only that number has. It
 *       makes state files large, does not compress, and proves at the end which bytes came back.
 *   <li>Operator state: how many numbers this subtask has seen.
 * </ul>
 *
 * <p>The end of the input comes as the watermark {@code Long.MAX_VALUE}, which fires one timer for
 * each key. All timers of a subtask fire between two checkpoints, so a restore sees either none or
 * all of its lines written.
 */
final class Tally extends KeyedProcessFunction<Long, Long, Long> implements CheckpointedFunction {
    /**
     * {@code key, <key>, <count>, <sum>, <digest>, <numbers with intact noise>} for each key, and
     * {@code subtask, <index>, <numbers seen>} for each subtask, separated by tabs.
     */
    static final OutputTag<String> TOTALS = new OutputTag<>("totals", Types.STRING);

    private static final int BALLAST_ENTRIES = 8;
    private static final int BALLAST_BYTES = 256;

    /** Sleeping for less takes much longer than asked for. */
    private static final long PAUSE_MICROS_MIN = 5_000;

    private final long pauseMicros;

    private transient ValueState<Tuple3<Long, Long, Long>> totals;
    private transient MapState<Integer, byte[]> ballast;
    private transient ListState<Long> seenByAll;
    private transient long seen;
    private transient boolean reported;
    private transient long owedMicros;

    Tally(long pauseMicros) {
        this.pauseMicros = pauseMicros;
    }

    @Override
    public void initializeState(FunctionInitializationContext context) throws Exception {
        seenByAll = context.getOperatorStateStore()
                .getListState(new ListStateDescriptor<>("seen", Types.LONG));
        for (long share : seenByAll.get()) {
            seen += share;
        }
    }

    @Override
    public void open(OpenContext context) {
        totals = getRuntimeContext().getState(new ValueStateDescriptor<>(
                "totals", Types.TUPLE(Types.LONG, Types.LONG, Types.LONG)));
        ballast = getRuntimeContext().getMapState(new MapStateDescriptor<>(
                "ballast", Types.INT, PrimitiveArrayTypeInfo.BYTE_PRIMITIVE_ARRAY_TYPE_INFO));
    }

    @Override
    public void snapshotState(FunctionSnapshotContext context) throws Exception {
        seenByAll.update(Arrays.asList(seen));
    }

    @Override
    public void processElement(Long number, Context context, Collector<Long> out) throws Exception {
        Tuple3<Long, Long, Long> total = totals.value();
        if (total == null) {
            total = Tuple3.of(0L, 0L, 0L);
            context.timerService().registerEventTimeTimer(Long.MAX_VALUE);
        }
        ballast.put((int) (total.f0 % BALLAST_ENTRIES), noise(number));
        totals.update(Tuple3.of(total.f0 + 1, total.f1 + number, total.f2 + mix(number)));
        seen++;
        out.collect(number);
        rest();
    }

    private void rest() throws InterruptedException {
        owedMicros += pauseMicros;
        if (owedMicros >= PAUSE_MICROS_MIN) {
            TimeUnit.MICROSECONDS.sleep(owedMicros);
            owedMicros = 0;
        }
    }

    @Override
    public void onTimer(long time, OnTimerContext context, Collector<Long> out) throws Exception {
        if (!reported) {
            int subtask = getRuntimeContext().getTaskInfo().getIndexOfThisSubtask();
            context.output(TOTALS, String.format("subtask\t%d\t%d", subtask, seen));
            reported = true;
        }
        Tuple3<Long, Long, Long> total = totals.value();
        context.output(TOTALS, String.format("key\t%d\t%d\t%d\t%s\t%d",
                context.getCurrentKey(), total.f0, total.f1, Long.toUnsignedString(total.f2), intactBallast()));
    }

    private int intactBallast() throws Exception {
        int intact = 0;
        for (Map.Entry<Integer, byte[]> entry : ballast.entries()) {
            long number = ByteBuffer.wrap(entry.getValue()).getLong();
            intact += Arrays.equals(entry.getValue(), noise(number)) ? 1 : 0;
        }
        return intact;
    }

    /** The number itself, and bytes that follow from it. */
    private static byte[] noise(long number) {
        byte[] bytes = new byte[BALLAST_BYTES];
        new Random(mix(number)).nextBytes(bytes);
        ByteBuffer.wrap(bytes).putLong(number);
        return bytes;
    }

    /** The finalizer of SplitMix64; the test computes the same. */
    static long mix(long number) {
        long mixed = number + 0x9E3779B97F4A7C15L;
        mixed = (mixed ^ (mixed >>> 30)) * 0xBF58476D1CE4E5B9L;
        mixed = (mixed ^ (mixed >>> 27)) * 0x94D049BB133111EBL;
        return mixed ^ (mixed >>> 31);
    }
}
