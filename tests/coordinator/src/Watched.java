package org.apache.flink.runtime.checkpoint;

import java.util.ArrayList;
import java.util.HashSet;
import java.util.List;
import java.util.Set;
import java.util.TreeSet;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.Executor;
import java.util.function.Consumer;
import java.util.function.Function;
import org.apache.flink.api.common.JobID;
import org.apache.flink.core.execution.RecoveryClaimMode;
import org.apache.flink.runtime.executiongraph.ExecutionAttemptID;
import org.apache.flink.runtime.executiongraph.utils.SimpleAckingTaskManagerGateway;
import org.apache.flink.runtime.messages.Acknowledge;
import org.apache.flink.runtime.state.SharedStateRegistry;

/** The coordinator's surroundings as Flink has them, each of which also says what it was asked to do. */
final class Watched {
    private final Trace trace;
    private final TreeSet<Long> running = new TreeSet<>();
    private final Set<Long> aborted = new HashSet<>();
    private final Set<Long> toBeTold = new HashSet<>();
    private final Set<Long> triggered = new HashSet<>();
    private Consumer<CheckpointFailureReason> onNextAbort = nobody -> {};

    Watched(Trace trace) {
        this.trace = trace;
    }

    /** Checkpoints that tasks know of and that are not over. */
    TreeSet<Long> running() {
        return running;
    }

    /** Somebody wants to know why the next one is aborted. */
    void onNextAbort(Consumer<CheckpointFailureReason> tell) {
        onNextAbort = tell;
    }

    /** The way to the tasks. Of all tasks, the first one that is told counts. */
    final class Gateway extends SimpleAckingTaskManagerGateway {
        @Override
        public CompletableFuture<Acknowledge> triggerCheckpoint(
                ExecutionAttemptID task, JobID job, long id, long timestamp, CheckpointOptions options) {
            if (triggered.add(id)) {
                running.add(id);
                boolean full = options.getCheckpointType().equals(CheckpointType.FULL_CHECKPOINT);
                trace.told("trigger " + id + (full ? " full" : ""));
            }
            return CompletableFuture.completedFuture(Acknowledge.get());
        }

        @Override
        public void notifyCheckpointOnComplete(
                ExecutionAttemptID task, JobID job, long id, long timestamp, long lastSubsumed) {
            if (toBeTold.remove(id)) {
                trace.told("complete " + id + (lastSubsumed > 0 ? " over " + lastSubsumed : ""));
            }
        }
    }

    /** Counts failures as Flink does. */
    final class Failures extends CheckpointFailureManager {
        private final Function<Long, PendingCheckpoint> pending;

        Failures(int tolerated, Function<Long, PendingCheckpoint> pending, FailJobCallback failJob) {
            super(tolerated, failJob);
            this.pending = pending;
        }

        @Override
        public void handleCheckpointException(
                PendingCheckpoint checkpoint, CheckpointProperties properties, CheckpointException exception,
                ExecutionAttemptID task, JobID job, PendingCheckpointStats stats, CheckpointStatsTracker tracker) {
            // One that is aborted while it begins is reported once more by whoever began it.
            if (checkpoint != null && aborted.add(checkpoint.getCheckpointID())) {
                CheckpointFailureReason reason = exception.getCheckpointFailureReason();
                running.remove(checkpoint.getCheckpointID());
                trace.told("abort " + checkpoint.getCheckpointID() + " " + reason);
                onNextAbort.accept(reason);
                onNextAbort = nobody -> {};
            }
            super.handleCheckpointException(checkpoint, properties, exception, task, job, stats, tracker);
        }

        @Override
        public void handleCheckpointSuccess(long id) {
            super.handleCheckpointSuccess(id);
            running.remove(id);
            CheckpointProperties properties = pending.apply(id).getProps();
            if (properties.isSavepoint() && !properties.isSynchronous()) {
                trace.told("complete " + id + " untold");
            } else {
                toBeTold.add(id);
            }
        }
    }

    /** Keeps completed checkpoints as Flink does. */
    final class Store extends StandaloneCompletedCheckpointStore {
        Store(int retained, Executor executor) {
            super(retained, SharedStateRegistry.DEFAULT_FACTORY, executor, RecoveryClaimMode.DEFAULT);
        }

        @Override
        public CompletedCheckpoint addCheckpointAndSubsumeOldestOne(
                CompletedCheckpoint checkpoint, CheckpointsCleaner cleaner, Runnable postCleanup) throws Exception {
            List<CompletedCheckpoint> before = new ArrayList<>(getAllCheckpoints());
            CompletedCheckpoint subsumed = super.addCheckpointAndSubsumeOldestOne(checkpoint, cleaner, postCleanup);
            before.removeAll(getAllCheckpoints());
            before.forEach(gone -> trace.other("subsume " + gone.getCheckpointID()));
            return subsumed;
        }
    }
}
