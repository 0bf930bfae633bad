package org.apache.flink.runtime.checkpoint;

import java.util.PriorityQueue;
import java.util.concurrent.Callable;
import java.util.concurrent.CancellationException;
import java.util.concurrent.Delayed;
import java.util.concurrent.FutureTask;
import java.util.concurrent.ScheduledFuture;
import java.util.concurrent.TimeUnit;
import org.apache.flink.util.clock.ManualClock;
import org.apache.flink.util.concurrent.ScheduledExecutor;

/**
 * Time that passes when it is told to, and the one thread of a job: what is to be run is run at its time, and what has the
 * same time in the order in which it came. Flink's own executor for tests knows no times.
 */
final class VirtualTime implements ScheduledExecutor {
    /** A machine that was started a while ago: to the coordinator 0 is the time of a checkpoint that never was. */
    private static final long BEGINNING_MILLIS = 1_000_000_000;

    final ManualClock clock = new ManualClock(TimeUnit.MILLISECONDS.toNanos(BEGINNING_MILLIS));
    private final PriorityQueue<Task<?>> tasks = new PriorityQueue<>();
    private long numbers;
    private long wallClockMillis;
    /** Called when the coordinator has made a checkpoint, which it does by setting the timer of its expiry. */
    Runnable onCheckpointMade = () -> {};
    /** Called after a periodic request was made. */
    Runnable onPeriodicRequest = () -> {};

    long now() {
        return clock.relativeTimeMillis() - BEGINNING_MILLIS;
    }

    /** Runs what is due, and then it is this time. */
    void passUntil(long millis) {
        while (!tasks.isEmpty() && tasks.peek().at <= millis) {
            Task<?> task = tasks.poll();
            if (task.at > now()) {
                clock.advanceTime(task.at - now(), TimeUnit.MILLISECONDS);
                awaitWallClock();
            }
            task.runAndThrow();
        }
        clock.advanceTime(millis - now(), TimeUnit.MILLISECONDS);
    }

    /** Runs what is due now. */
    void settle() {
        passUntil(now());
    }

    /** Flink orders requests by the wall clock, and those of the same millisecond by chance: no two have the same. */
    void awaitWallClock() {
        while (System.currentTimeMillis() <= wallClockMillis) {
            Thread.onSpinWait();
        }
        wallClockMillis = System.currentTimeMillis();
    }

    @Override
    public void execute(Runnable command) {
        schedule(command, 0, TimeUnit.MILLISECONDS);
    }

    @Override
    public ScheduledFuture<?> schedule(Runnable command, long delay, TimeUnit unit) {
        if (command instanceof CheckpointCoordinator.CheckpointCanceller) {
            onCheckpointMade.run();
        }
        boolean periodic = command instanceof CheckpointCoordinator.ScheduledTrigger;
        return schedule(() -> {
            command.run();
            if (periodic) {
                onPeriodicRequest.run();
            }
            return null;
        }, delay, unit);
    }

    /** Runs it before everything else: on the thread of the scheduler, which is faster here. */
    void executeFirst(Runnable command) {
        tasks.add(new Task<>(() -> {
            command.run();
            return null;
        }, now(), true, numbers++));
    }

    @Override
    public <V> ScheduledFuture<V> schedule(Callable<V> callable, long delay, TimeUnit unit) {
        Task<V> task = new Task<>(callable, now() + unit.toMillis(delay), false, numbers++);
        tasks.add(task);
        return task;
    }

    @Override
    public ScheduledFuture<?> scheduleAtFixedRate(Runnable command, long initialDelay, long period, TimeUnit unit) {
        throw new UnsupportedOperationException("the coordinator does not use it");
    }

    @Override
    public ScheduledFuture<?> scheduleWithFixedDelay(Runnable command, long initialDelay, long delay, TimeUnit unit) {
        throw new UnsupportedOperationException("the coordinator does not use it");
    }

    private final class Task<V> extends FutureTask<V> implements ScheduledFuture<V> {
        private final long at;
        private final boolean first;
        private final long number;

        Task(Callable<V> callable, long at, boolean first, long number) {
            super(callable);
            this.at = at;
            this.first = first;
            this.number = number;
        }

        void runAndThrow() {
            if (isCancelled()) {
                return;
            }
            run();
            try {
                get();
            } catch (CancellationException cancelled) {
                // An expiry cancels its own timer.
            } catch (Exception failure) {
                throw new IllegalStateException("at " + at + " ms", failure);
            }
        }

        @Override
        public long getDelay(TimeUnit unit) {
            return unit.convert(at - now(), TimeUnit.MILLISECONDS);
        }

        @Override
        public int compareTo(Delayed other) {
            Task<?> that = (Task<?>) other;
            if (at != that.at) {
                return Long.compare(at, that.at);
            }
            return first != that.first ? Boolean.compare(that.first, first) : Long.compare(number, that.number);
        }
    }
}
