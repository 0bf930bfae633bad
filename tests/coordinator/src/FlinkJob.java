package org.apache.flink.runtime.checkpoint;

import java.lang.reflect.Field;
import java.util.ArrayList;
import java.util.Collections;
import java.util.HashMap;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.NavigableSet;
import java.util.Set;
import java.util.concurrent.CompletableFuture;
import org.apache.flink.core.execution.CheckpointType;
import org.apache.flink.core.execution.SavepointFormatType;
import org.apache.flink.runtime.concurrent.ComponentMainThreadExecutorServiceAdapter;
import org.apache.flink.runtime.concurrent.ManuallyTriggeredScheduledExecutorService;
import org.apache.flink.runtime.execution.ExecutionState;
import org.apache.flink.runtime.executiongraph.DefaultExecutionGraph;
import org.apache.flink.runtime.executiongraph.Execution;
import org.apache.flink.runtime.executiongraph.ExecutionAttemptID;
import org.apache.flink.runtime.executiongraph.ExecutionGraphCheckpointPlanCalculatorContext;
import org.apache.flink.runtime.executiongraph.ExecutionGraphTestUtils;
import org.apache.flink.runtime.executiongraph.ExecutionVertex;
import org.apache.flink.runtime.io.network.partition.ResultPartitionType;
import org.apache.flink.runtime.jobgraph.DistributionPattern;
import org.apache.flink.runtime.jobgraph.JobVertex;
import org.apache.flink.runtime.jobgraph.OperatorID;
import org.apache.flink.runtime.jobgraph.tasks.CheckpointCoordinatorConfiguration;
import org.apache.flink.runtime.jobmaster.TestingLogicalSlotBuilder;
import org.apache.flink.runtime.scheduler.VertexEndOfDataListener;
import org.apache.flink.runtime.state.CheckpointMetadataOutputStream;
import org.apache.flink.runtime.testtasks.NoOpInvokable;
import org.apache.flink.runtime.util.JobVertexConnectionUtils;

/**
 * A job of Flink's with Flink's own coordinator. Around that, this does what Flink's scheduler does: starts periodic
 * checkpoints when all tasks run, and stops them and restarts all tasks when one fails or a failed checkpoint fails the job.
 *
 * @see org.apache.flink.runtime.scheduler.SchedulerBase
 * @see CheckpointCoordinatorDeActivator
 */
final class FlinkJob {
    final VirtualTime time = new VirtualTime();
    final Trace trace = new Trace(time);
    final Storage storage = new Storage(time, trace);
    final CheckpointsCleaner cleaner = storage.cleaner();
    final Watched watched = new Watched(trace);
    final DefaultExecutionGraph graph;
    final CompletedCheckpointStore store;
    final CheckpointCoordinator coordinator;
    private final CheckpointCoordinatorConfiguration settings;
    private final StandaloneCheckpointIDCounter ids = new StandaloneCheckpointIDCounter();
    private final Watched.Gateway gateway = watched.new Gateway();
    private final Map<String, JobVertex> vertices = new LinkedHashMap<>();
    private final Map<String, ExecutionAttemptID> attemptsBefore = new HashMap<>();
    private final Set<ExecutionAttemptID> atEndOfData = new HashSet<>();
    private VertexEndOfDataListener endsOfData;
    private boolean schedulerRuns;
    private boolean restored = true;
    private long failedAt = -1;

    FlinkJob(Schedule schedule) throws Exception {
        graph = graph(schedule);
        settings = settings(schedule);
        store = watched.new Store((int) schedule.number("num-retained", 1), storage.executor());
        coordinator = makeCoordinator();
        if (schedule.is("one-periodic-request", false)) {
            NavigableSet<CheckpointCoordinator.CheckpointTriggerRequest> queue = queue();
            time.onPeriodicRequest = () -> dropAllPeriodicButOne(queue);
        }
        setFirstDelay(schedule.settings().path("draw").asDouble(1.0));
        endsOfData = new VertexEndOfDataListener(graph);
        restore(schedule);
    }

    private DefaultExecutionGraph graph(Schedule schedule) throws Exception {
        JobVertex before = null;
        for (Schedule.Operator operator : schedule.operators()) {
            JobVertex vertex = new JobVertex(operator.id());
            vertex.setInvokableClass(NoOpInvokable.class);
            vertex.setParallelism(operator.parallelism());
            vertex.setMaxParallelism(128);
            if (before != null) {
                JobVertexConnectionUtils.connectNewDataSetAsInput(
                        vertex, before, DistributionPattern.ALL_TO_ALL, ResultPartitionType.PIPELINED);
            }
            vertices.put(operator.id(), vertex);
            before = vertex;
        }
        DefaultExecutionGraph made = ExecutionGraphTestUtils.createExecutionGraph(
                new ManuallyTriggeredScheduledExecutorService(), vertices.values().toArray(new JobVertex[0]));
        made.start(ComponentMainThreadExecutorServiceAdapter.forMainThread());
        made.transitionToRunning();
        made.getAllExecutionVertices().forEach(this::assignSlot);
        return made;
    }

    private static CheckpointCoordinatorConfiguration settings(Schedule schedule) {
        long interval = schedule.number("interval", CheckpointCoordinatorConfiguration.DISABLED_CHECKPOINT_INTERVAL);
        long duringBacklog = schedule.number("interval-during-backlog", interval);
        return CheckpointCoordinatorConfiguration.builder()
                .setCheckpointInterval(interval)
                .setCheckpointIntervalDuringBacklog(duringBacklog)
                .setCheckpointTimeout(schedule.number("timeout", 600_000))
                .setMinPauseBetweenCheckpoints(schedule.number("min-pause", 0))
                .setMaxConcurrentCheckpoints((int) schedule.number("max-concurrent-checkpoints", 1))
                .setTolerableCheckpointFailureNumber((int) schedule.number("tolerable-failed-checkpoints", 0))
                .setUnalignedCheckpointsEnabled(schedule.is("unaligned.enabled", false))
                .setEnableCheckpointsAfterTasksFinish(schedule.is("checkpoints-after-tasks-finish", true))
                .setCheckpointRetentionPolicy(retention(schedule))
                .build();
    }

    /** Flink's own name of a policy. */
    private static CheckpointRetentionPolicy retention(Schedule schedule) {
        String policy = schedule.settings().path("externalized-checkpoint-retention").asText();
        return switch (policy) {
            case "DELETE_ON_CANCELLATION" -> CheckpointRetentionPolicy.RETAIN_ON_FAILURE;
            case "RETAIN_ON_CANCELLATION" -> CheckpointRetentionPolicy.RETAIN_ON_CANCELLATION;
            case "", "NO_EXTERNALIZED_CHECKPOINTS" -> CheckpointRetentionPolicy.NEVER_RETAIN_AFTER_TERMINATION;
            default -> throw new IllegalArgumentException("nobody knows the policy " + policy);
        };
    }

    private CheckpointCoordinator makeCoordinator() {
        CheckpointPlanCalculator plans = new DefaultCheckpointPlanCalculator(
                graph.getJobID(), new ExecutionGraphCheckpointPlanCalculatorContext(graph),
                graph.getVerticesTopologically(), settings.isEnableCheckpointsAfterTasksFinish());
        CheckpointFailureManager failures = watched.new Failures(
                settings.getTolerableCheckpointFailureNumber(), id -> coordinator.getPendingCheckpoints().get(id),
                new FailJob());
        return new CheckpointCoordinator(
                graph.getJobID(), settings, Collections.emptyList(), ids, store, storage, storage.executor(), cleaner, time,
                failures, plans, time.clock, NoOpCheckpointStatsTracker.INSTANCE, VertexFinishedStateChecker::new);
    }

    @SuppressWarnings("unchecked")
    private NavigableSet<CheckpointCoordinator.CheckpointTriggerRequest> queue() throws ReflectiveOperationException {
        Object decider = field(CheckpointCoordinator.class, "requestDecider").get(coordinator);
        return (NavigableSet<CheckpointCoordinator.CheckpointTriggerRequest>)
                field(CheckpointRequestDecider.class, "queuedRequests").get(decider);
    }

    /** Flink queues a periodic request for each tick; some schedules want to see what it does without that. */
    private static void dropAllPeriodicButOne(NavigableSet<CheckpointCoordinator.CheckpointTriggerRequest> queue) {
        List<CheckpointCoordinator.CheckpointTriggerRequest> periodic =
                queue.stream().filter(request -> request.isPeriodic).toList();
        periodic.stream().skip(1).forEach(queue::remove);
    }

    private static Field field(Class<?> of, String name) throws ReflectiveOperationException {
        Field field = of.getDeclaredField(name);
        field.setAccessible(true);
        return field;
    }

    /**
     * Only the delay of the first periodic checkpoint is left to chance. It is checked to be what it may be, and then set to
     * what the schedule says: 0 is the earliest moment, 1 the latest.
     */
    private void setFirstDelay(double draw) throws ReflectiveOperationException {
        if (!coordinator.isPeriodicCheckpointingConfigured()) {
            return;
        }
        Field delay = field(CheckpointCoordinator.class, "triggerDelay");
        long least = settings.getMinPauseBetweenCheckpoints();
        long most = settings.getCheckpointInterval();
        long drawn = delay.getLong(coordinator);
        if (drawn < least || drawn > most) {
            throw new IllegalStateException("the first delay is " + drawn + " ms, not " + least + " to " + most);
        }
        delay.setLong(coordinator, least + (long) ((most - least) * draw));
    }

    /** Begins with completed checkpoints, as {@link CheckpointCoordinator#restoreSavepoint} does. */
    private void restore(Schedule schedule) throws Exception {
        for (var retained : schedule.settings().path("retained")) {
            long id = retained.get(0).asLong();
            CheckpointProperties properties = retained.get(1).asText().equals("foreign")
                    ? CheckpointProperties.forUnclaimedSnapshot()
                    : CheckpointProperties.forCheckpoint(retention(schedule));
            CheckpointMetadataOutputStream metadata =
                    storage.place().createMetadataOutputStream();
            store.addCheckpointAndSubsumeOldestOne(
                    new CompletedCheckpoint(
                            graph.getJobID(), id, 0, 0, new HashMap<>(), Collections.emptyList(), properties,
                            metadata.closeAndFinalizeCheckpoint(), null),
                    cleaner, () -> {});
            ids.setCount(id + 1);
        }
        if (store.getNumberOfRetainedCheckpoints() > 0) {
            coordinator.restoreLatestCheckpointedStateToAll(new HashSet<>(graph.getAllVertices().values()), true);
        }
    }

    /** The tasks, in the order of the operators. */
    List<Execution> tasks() {
        List<Execution> tasks = new ArrayList<>();
        for (JobVertex vertex : vertices.values()) {
            for (ExecutionVertex task : graph.getJobVertex(vertex.getID()).getTaskVertices()) {
                tasks.add(task.getCurrentExecutionAttempt());
            }
        }
        return tasks;
    }

    /** The task that is named {@code operator.subtask}. */
    Execution task(String name) {
        int dot = name.lastIndexOf('.');
        return graph.getJobVertex(vertices.get(name.substring(0, dot)).getID())
                .getTaskVertices()[Integer.parseInt(name.substring(dot + 1))].getCurrentExecutionAttempt();
    }

    static String name(Execution task) {
        return task.getVertex().getJobVertex().getName() + "." + task.getParallelSubtaskIndex();
    }

    OperatorID operator(String name) {
        return OperatorID.fromJobVertexID(vertices.get(name).getID());
    }

    /** The attempt of a task before its present one. */
    ExecutionAttemptID attemptBefore(String task) {
        return attemptsBefore.get(task);
    }

    private void assignSlot(ExecutionVertex task) {
        task.tryAssignResource(new TestingLogicalSlotBuilder().setTaskManagerGateway(gateway).createTestingLogicalSlot());
        task.getCurrentExecutionAttempt().transitionState(ExecutionState.DEPLOYING);
    }

    /** A task runs. Before the first one does after a restart, state is restored, and what is left in progress given up. */
    void run(Execution task) {
        if (task.getState() == ExecutionState.DEPLOYING) {
            if (!restored) {
                restored = true;
                coordinator.abortPendingCheckpoints(
                        new CheckpointException(CheckpointFailureReason.JOB_FAILOVER_REGION));
            }
            task.transitionState(ExecutionState.RUNNING);
            startOrStopPeriodicCheckpoints();
        }
    }

    /** A task is over. */
    void finish(Execution task) {
        if (task.getState() == ExecutionState.RUNNING) {
            task.markFinished();
            startOrStopPeriodicCheckpoints();
        }
    }

    /** A task has read all its input. */
    void endOfData(Execution task) {
        boolean counts = task.getState() == ExecutionState.RUNNING && settings.isEnableCheckpointsAfterTasksFinish();
        if (!counts || !atEndOfData.add(task.getAttemptId())) {
            return;
        }
        endsOfData.recordTaskEndOfData(task.getAttemptId());
        if (endsOfData.areAllTasksOfJobVertexEndOfData(task.getVertex().getJobvertexId())) {
            coordinator.setIsProcessingBacklog(OperatorID.fromJobVertexID(task.getVertex().getJobvertexId()), false);
        }
        if (endsOfData.areAllTasksEndOfData()) {
            coordinator.triggerCheckpoint(CheckpointType.CONFIGURED);
        }
    }

    /** A task fails, and so all of them have to begin anew. */
    void fail(Execution task) throws Exception {
        if (!task.getState().isTerminal()) {
            task.transitionState(ExecutionState.FAILED);
            restart();
        }
    }

    /** All tasks begin anew. */
    private void restart() throws Exception {
        stopPeriodicCheckpoints();
        for (Execution task : tasks()) {
            if (!task.getState().isTerminal()) {
                task.transitionState(ExecutionState.CANCELED);
            }
            graph.deregisterExecution(task);
            attemptsBefore.put(name(task), task.getAttemptId());
        }
        for (Execution task : tasks()) {
            task.getVertex().resetForNewExecution();
        }
        restored = false;
        endsOfData = new VertexEndOfDataListener(graph);
        graph.getAllExecutionVertices().forEach(this::assignSlot);
    }

    private void startOrStopPeriodicCheckpoints() {
        boolean allRun = tasks().stream().map(Execution::getState).allMatch(
                state -> state == ExecutionState.RUNNING || state == ExecutionState.FINISHED);
        boolean ended = graph.getState().isTerminalState();
        if (allRun && !ended && !schedulerRuns && coordinator.isPeriodicCheckpointingConfigured()) {
            schedulerRuns = true;
            coordinator.startCheckpointScheduler();
        } else if (!allRun || ended) {
            stopPeriodicCheckpoints();
        }
    }

    private void stopPeriodicCheckpoints() {
        if (schedulerRuns) {
            schedulerRuns = false;
            coordinator.stopCheckpointScheduler();
        }
    }

    /** Stops with a savepoint: nothing else is triggered until that has failed. */
    CompletableFuture<CompletedCheckpoint> stop(boolean drain) {
        coordinator.stopCheckpointScheduler();
        CompletableFuture<CompletedCheckpoint> savepoint =
                coordinator.triggerSynchronousSavepoint(drain, "dir", SavepointFormatType.CANONICAL);
        savepoint.whenCompleteAsync(
                (completed, failure) -> {
                    if (failure != null && coordinator.isPeriodicCheckpointingConfigured() && !coordinator.isShutdown()) {
                        coordinator.startCheckpointScheduler();
                    }
                },
                time::executeFirst);
        return savepoint;
    }

    /** What a failed checkpoint that is not tolerated does: the scheduler's thread restarts the job. */
    private final class FailJob implements CheckpointFailureManager.FailJobCallback {
        @Override
        public void failJob(Throwable cause) {
            failed();
            time.executeFirst(this::restartNow);
        }

        @Override
        public void failJobDueToTaskFailure(Throwable cause, ExecutionAttemptID failingTask) {
            failed();
            time.executeFirst(() -> {
                Execution task = graph.getRegisteredExecutions().get(failingTask);
                if (task != null && task.getState() == ExecutionState.RUNNING) {
                    restartNow();
                }
            });
        }

        /** A checkpoint that expires while it begins is reported twice, and may fail the job twice: that is once. */
        private void failed() {
            if (failedAt != time.now()) {
                trace.other("job-failed");
            }
            failedAt = time.now();
        }

        private void restartNow() {
            try {
                restart();
            } catch (Exception failure) {
                throw new IllegalStateException(failure);
            }
        }
    }
}
