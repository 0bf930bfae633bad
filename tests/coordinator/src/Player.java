package org.apache.flink.runtime.checkpoint;

import java.util.Collection;
import java.util.Collections;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.function.Consumer;
import org.apache.flink.api.common.JobStatus;
import org.apache.flink.core.execution.CheckpointType;
import org.apache.flink.core.execution.SavepointFormatType;
import org.apache.flink.runtime.executiongraph.Execution;
import org.apache.flink.runtime.executiongraph.ExecutionAttemptID;
import org.apache.flink.runtime.jobgraph.OperatorID;
import org.apache.flink.runtime.messages.checkpoint.AcknowledgeCheckpoint;
import org.apache.flink.runtime.messages.checkpoint.DeclineCheckpoint;
import org.apache.flink.runtime.state.OperatorStateHandle;
import org.apache.flink.runtime.state.OperatorStreamStateHandle;
import org.apache.flink.runtime.state.memory.ByteStreamStateHandle;
import org.apache.flink.util.ExceptionUtils;

/** Plays a schedule to a job of Flink's. */
final class Player {
    private final Schedule schedule;
    private final FlinkJob job;

    Player(Schedule schedule) throws Exception {
        this.schedule = schedule;
        this.job = new FlinkJob(schedule);
    }

    /** What was seen: for each instant at which something was, its time, then what. */
    List<List<Object>> play() throws Exception {
        for (Schedule.Event event : schedule.events()) {
            job.time.passUntil(event.at());
            job.time.awaitWallClock();
            happen(event);
            job.time.settle();
        }
        return job.trace.instants();
    }

    private void happen(Schedule.Event event) throws Exception {
        String first = event.argument(0, "*");
        String second = event.argument(1, "*");
        switch (event.what()) {
            case "run" -> tasks(first).forEach(job::run);
            case "finish" -> tasks(first).forEach(job::finish);
            case "end-of-data" -> tasks(first).forEach(job::endOfData);
            case "fail" -> job.fail(job.task(first));
            case "checkpoint" -> {
                for (int left = Integer.parseInt(event.argument(1, "1")); left > 0; left--) {
                    job.time.awaitWallClock();
                    answer(first, job.coordinator.triggerCheckpoint(CheckpointType.CONFIGURED));
                    job.time.settle();
                }
            }
            case "savepoint" -> answer(first, job.coordinator.triggerSavepoint("dir", SavepointFormatType.CANONICAL));
            case "stop" -> answer(first, job.stop(second.equals("drain")));
            case "ack" -> acknowledge(first, second, event.argument(2, "").equals("finished"));
            case "ack-of-attempt-before" -> acknowledge(id(first), job.task(second), job.attemptBefore(second), false);
            case "decline" -> decline(first, second, CheckpointFailureReason.valueOf(event.argument(2, "")));
            case "backlog" -> job.coordinator.setIsProcessingBacklog(job.operator(first), Boolean.parseBoolean(second));
            case "hold" -> job.storage.hold(first);
            case "release" -> job.storage.release(first);
            case "clean-one" -> job.storage.cleanOne();
            case "fail-begin" -> job.storage.failsNextBegin = first;
            case "fail-store" -> job.storage.failsNextStore = true;
            case "heal" -> {
                job.storage.failsNextBegin = null;
                job.storage.failsNextStore = false;
            }
            case "halt" -> job.coordinator.stopCheckpointScheduler();
            case "end" -> end(JobStatus.valueOf(first));
            case "pass" -> {}
            default -> throw new IllegalArgumentException("nobody knows what to do for " + event);
        }
    }

    private Collection<Execution> tasks(String name) {
        return name.equals("*") ? job.tasks() : List.of(job.task(name));
    }

    /** A number, or the oldest or newest that tasks were told of and that is not over; 0 if there is none. */
    private long id(String reference) {
        return switch (reference) {
            case "oldest" -> job.watched.running().isEmpty() ? 0 : job.watched.running().first();
            case "newest" -> job.watched.running().isEmpty() ? 0 : job.watched.running().last();
            default -> Long.parseLong(reference);
        };
    }

    /** Says how a request ends. */
    private void answer(String label, CompletableFuture<CompletedCheckpoint> ending) {
        ending.whenComplete((completed, failure) -> {
            if (failure == null) {
                job.trace.other("answer " + label + " completed " + completed.getCheckpointID());
                return;
            }
            Consumer<CheckpointFailureReason> failed =
                    reason -> job.trace.other("answer " + label + " failed " + reason);
            // When metadata cannot be stored, it is told first, and then the reason is found.
            ExceptionUtils.findThrowable(failure, CheckpointException.class).ifPresentOrElse(
                    known -> failed.accept(known.getCheckpointFailureReason()), () -> job.watched.onNextAbort(failed));
        });
    }

    private void acknowledge(String reference, String name, boolean finished) {
        long id = id(reference);
        for (Execution task : tasks(name)) {
            // All that are to acknowledge do, and the last one completes it.
            boolean all = name.equals("*");
            if (id == 0 || all && (task.isFinished() || !job.watched.running().contains(id))) {
                continue;
            }
            acknowledge(id, task, task.getAttemptId(), finished);
        }
    }

    private void acknowledge(long id, Execution task, ExecutionAttemptID attempt, boolean finished) {
        TestState bytes = new TestState();
        boolean union = schedule.operators().stream().anyMatch(
                operator -> operator.unionListState() && FlinkJob.name(task).startsWith(operator.id() + "."));
        OperatorStateHandle.Mode mode =
                union ? OperatorStateHandle.Mode.UNION : OperatorStateHandle.Mode.SPLIT_DISTRIBUTE;
        OperatorSubtaskState state = OperatorSubtaskState.builder()
                .setManagedOperatorState(new OperatorStreamStateHandle(
                        Collections.singletonMap("s", new OperatorStateHandle.StateMetaInfo(new long[] {0}, mode)), bytes))
                .build();
        TaskStateSnapshot snapshot = new TaskStateSnapshot(1, finished);
        snapshot.putSubtaskStateByOperatorID(
                OperatorID.fromJobVertexID(task.getVertex().getJobvertexId()), state);
        PendingCheckpoint pending = job.coordinator.getPendingCheckpoints().get(id);
        if (pending != null && !job.watched.running().contains(id)) {
            return; // No task knows of it yet.
        }
        boolean known = pending != null && attempt.equals(task.getAttemptId());
        try {
            job.coordinator.receiveAcknowledgeMessage(
                    new AcknowledgeCheckpoint(job.graph.getJobID(), attempt, id, new CheckpointMetrics(), snapshot), "here");
        } catch (CheckpointException failure) {
            // The coordinator has dealt with it.
        }
        job.time.settle();
        if (!known && bytes.discarded) {
            job.trace.other("late " + id + " " + FlinkJob.name(task));
        }
    }

    private void decline(String reference, String name, CheckpointFailureReason reason) {
        long id = id(reference);
        if (id != 0) {
            ExecutionAttemptID task = job.task(name).getAttemptId();
            job.coordinator.receiveDeclineMessage(
                    new DeclineCheckpoint(job.graph.getJobID(), task, id, new CheckpointException(reason)), "here");
        }
    }

    private void end(JobStatus status) throws Exception {
        job.coordinator.shutdown();
        job.time.settle();
        for (CompletedCheckpoint kept : job.store.getAllCheckpoints()) {
            if (kept.shouldBeDiscardedOnShutdown(status)) {
                job.trace.other("discard " + kept.getCheckpointID());
            }
        }
        job.store.shutdown(status, job.cleaner);
    }

    /** State that knows whether it was discarded. */
    private static final class TestState extends ByteStreamStateHandle {
        private static final long serialVersionUID = 1;
        private boolean discarded;

        TestState() {
            super("test", new byte[1]);
        }

        @Override
        public void discardState() {
            discarded = true;
        }
    }
}
