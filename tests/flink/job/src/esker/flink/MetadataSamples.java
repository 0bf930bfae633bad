package esker.flink;

import java.io.DataOutputStream;
import java.io.FileOutputStream;
import java.lang.reflect.Constructor;
import java.lang.reflect.Field;
import java.lang.reflect.InvocationTargetException;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.UUID;
import org.apache.flink.api.java.tuple.Tuple2;
import org.apache.flink.core.execution.SavepointFormatType;
import org.apache.flink.core.fs.Path;
import org.apache.flink.runtime.checkpoint.CheckpointProperties;
import org.apache.flink.runtime.checkpoint.CheckpointRetentionPolicy;
import org.apache.flink.runtime.checkpoint.Checkpoints;
import org.apache.flink.runtime.checkpoint.MasterState;
import org.apache.flink.runtime.checkpoint.OperatorState;
import org.apache.flink.runtime.checkpoint.OperatorSubtaskState;
import org.apache.flink.runtime.checkpoint.StateObjectCollection;
import org.apache.flink.runtime.checkpoint.channel.InputChannelInfo;
import org.apache.flink.runtime.checkpoint.channel.ResultSubpartitionInfo;
import org.apache.flink.runtime.checkpoint.metadata.CheckpointMetadata;
import org.apache.flink.runtime.checkpoint.metadata.MetadataSerializer;
import org.apache.flink.runtime.checkpoint.metadata.MetadataSerializers;
import org.apache.flink.runtime.jobgraph.OperatorID;
import org.apache.flink.runtime.state.CheckpointedStateScope;
import org.apache.flink.runtime.state.IncrementalKeyedStateHandle.HandleAndLocalPath;
import org.apache.flink.runtime.state.IncrementalRemoteKeyedStateHandle;
import org.apache.flink.runtime.state.InputChannelStateHandle;
import org.apache.flink.runtime.state.KeyGroupRange;
import org.apache.flink.runtime.state.KeyGroupRangeOffsets;
import org.apache.flink.runtime.state.KeyGroupsSavepointStateHandle;
import org.apache.flink.runtime.state.KeyGroupsStateHandle;
import org.apache.flink.runtime.state.OperatorStateHandle;
import org.apache.flink.runtime.state.OperatorStreamStateHandle;
import org.apache.flink.runtime.state.ResultSubpartitionStateHandle;
import org.apache.flink.runtime.state.StateHandleID;
import org.apache.flink.runtime.state.StreamStateHandle;
import org.apache.flink.runtime.state.changelog.ChangelogStateBackendHandle.ChangelogStateBackendHandleImpl;
import org.apache.flink.runtime.state.changelog.ChangelogStateHandleStreamImpl;
import org.apache.flink.runtime.state.changelog.inmemory.InMemoryChangelogStateHandle;
import org.apache.flink.runtime.state.changelog.SequenceNumber;
import org.apache.flink.runtime.state.changelog.StateChange;
import org.apache.flink.runtime.state.filemerging.DirectoryStreamStateHandle;
import org.apache.flink.runtime.state.filemerging.EmptyFileMergingOperatorStreamStateHandle;
import org.apache.flink.runtime.state.filemerging.FileMergingOperatorStreamStateHandle;
import org.apache.flink.runtime.checkpoint.filemerging.LogicalFile.LogicalFileId;
import org.apache.flink.runtime.state.filemerging.SegmentFileStateHandle;
import org.apache.flink.runtime.state.filesystem.FileStateHandle;
import org.apache.flink.runtime.state.filesystem.RelativeFileStateHandle;
import org.apache.flink.runtime.state.memory.ByteStreamStateHandle;

/** Writes a _metadata with every kind of handle that Flink has, in a version that it can write: FILE VERSION. */
public final class MetadataSamples {
    private static final String JOB = "s3://state/flink/0123456789abcdef0123456789abcdef";
    private static final KeyGroupRange GROUPS = KeyGroupRange.of(0, 1);

    private final int version;

    private MetadataSamples(int version) {
        this.version = version;
    }

    public static void main(String[] args) throws Exception {
        int version = Integer.parseInt(args[1]);
        MetadataSerializer serializer = MetadataSerializers.getSerializer(version);
        try (DataOutputStream out = new DataOutputStream(new FileOutputStream(args[0]))) {
            Checkpoints.storeCheckpointMetadata(new MetadataSamples(version).metadata(), out, serializer);
        }
    }

    private CheckpointMetadata metadata() throws Exception {
        List<OperatorState> operators = new ArrayList<>();
        OperatorState everything = operator("everything", 1, OperatorState.class);
        everything.setCoordinatorState(new ByteStreamStateHandle("coordinator", new byte[] {1, 2, 3}));
        everything.putState(0, subtask(partitioned(relative("state-0")), keyGroups(), null));
        everything.putState(1, subtask(merged(), incremental(), changelogBase()));
        everything.putState(2, subtask(empty(), changelog(), null));
        everything.putState(3, subtask(null, keyGroupsOfSavepoint(), null));
        operators.add(everything);
        operators.add(operator("finished", 2,
                Class.forName("org.apache.flink.runtime.checkpoint.FullyFinishedOperatorState")));
        List<MasterState> masters = Collections.singletonList(new MasterState("hook", new byte[] {4, 5}, 1));
        CheckpointProperties properties = version % 2 == 0
                ? CheckpointProperties.forCheckpoint(CheckpointRetentionPolicy.RETAIN_ON_CANCELLATION)
                : CheckpointProperties.forSavepoint(true, SavepointFormatType.NATIVE);
        return new CheckpointMetadata(7, operators, masters, properties);
    }

    /** Flink 2 has a name and an id of the user's in front of what Flink 1 has. */
    private static OperatorState operator(String name, long id, Class<?> type) throws Exception {
        OperatorID operator = new OperatorID(id, id);
        for (Constructor<?> constructor : type.getConstructors()) {
            try {
                return constructor.getParameterCount() == 5
                        ? (OperatorState) constructor.newInstance(name + " \ud83d\udc0b", "uid", operator, 4, 128)
                        : (OperatorState) constructor.newInstance(operator, 4, 128);
            } catch (InvocationTargetException | IllegalArgumentException other) {
                continue;
            }
        }
        throw new IllegalStateException("no constructor of " + type);
    }

    private OperatorSubtaskState subtask(
            OperatorStateHandle operator,
            org.apache.flink.runtime.state.KeyedStateHandle managed,
            org.apache.flink.runtime.state.KeyedStateHandle raw) throws Exception {
        OperatorSubtaskState.Builder builder = OperatorSubtaskState.builder();
        if (operator != null) {
            builder.setManagedOperatorState(operator);
            builder.setRawOperatorState(partitioned(file("raw", 5)));
        }
        builder.setManagedKeyedState(managed);
        if (raw != null) {
            builder.setRawKeyedState(raw);
        }
        List<Object> inputs = new ArrayList<>();
        List<Object> outputs = new ArrayList<>();
        inputs.add(new InputChannelStateHandle(0, new InputChannelInfo(0, 1), relative("channels"), Arrays.asList(3L), 9));
        outputs.add(new ResultSubpartitionStateHandle(
                0, new ResultSubpartitionInfo(0, 1), segment("channels", 40, 9), Arrays.asList(3L, 4L), 9));
        if (version >= 6) {
            inputs.add(mergedChannels("MergedInputChannelStateHandle", file("inputs", 11)));
            outputs.add(mergedChannels("MergedResultSubpartitionStateHandle", file("outputs", 12)));
        }
        set(builder, "inputChannelState", inputs);
        set(builder, "resultSubpartitionState", outputs);
        return builder.build();
    }

    private static Object mergedChannels(String type, StreamStateHandle handle) throws Exception {
        return Class.forName("org.apache.flink.runtime.state." + type)
                .getConstructor(int.class, StreamStateHandle.class, long.class, byte[].class)
                .newInstance(0, handle, handle.getStateSize(), new byte[] {0, 0, 0, 0});
    }

    /** The types of these lists are others in Flink 1 than in Flink 2. */
    @SuppressWarnings({"unchecked", "rawtypes"})
    private static void set(Object builder, String name, List<Object> handles) throws Exception {
        Field field = builder.getClass().getDeclaredField(name);
        field.setAccessible(true);
        field.set(builder, new StateObjectCollection((List) handles));
    }

    private static OperatorStateHandle partitioned(StreamStateHandle handle) {
        return new OperatorStreamStateHandle(states(), handle);
    }

    private static Map<String, OperatorStateHandle.StateMetaInfo> states() {
        Map<String, OperatorStateHandle.StateMetaInfo> states = new HashMap<>();
        states.put("offsets \u0000 \u00fc", new OperatorStateHandle.StateMetaInfo(
                new long[] {0, 4}, OperatorStateHandle.Mode.UNION));
        return states;
    }

    private static OperatorStateHandle merged() {
        return new FileMergingOperatorStreamStateHandle(
                folder("/taskowned/job_j_tm_t"), folder("/shared/job_j_op_o_0_4"), states(), segment("operator", 8, 32));
    }

    private static OperatorStateHandle empty() {
        return EmptyFileMergingOperatorStreamStateHandle.create(
                folder("/taskowned/job_j_tm_t"), folder("/shared/job_j_op_o_0_4"));
    }

    private static DirectoryStreamStateHandle folder(String path) {
        return DirectoryStreamStateHandle.of(new Path(JOB + path));
    }

    private static KeyGroupsStateHandle keyGroups() {
        StreamStateHandle nested = new KeyGroupsStateHandle(offsets(), file("nested", 21));
        return KeyGroupsStateHandle.restore(offsets(), nested, new StateHandleID("key-groups"));
    }

    private static KeyGroupsStateHandle keyGroupsOfSavepoint() {
        return new KeyGroupsSavepointStateHandle(offsets(), relative("savepoint"));
    }

    private static KeyGroupRangeOffsets offsets() {
        return new KeyGroupRangeOffsets(GROUPS, new long[] {0, 10});
    }

    private static IncrementalRemoteKeyedStateHandle incremental() {
        List<HandleAndLocalPath> shared = Arrays.asList(
                HandleAndLocalPath.of(file("shared \u00fc", 100), "000012.sst"),
                HandleAndLocalPath.of(segment("shared", 0, 64), "000013.sst"),
                HandleAndLocalPath.of(new ByteStreamStateHandle("inline", new byte[30]), "000014.sst"));
        List<HandleAndLocalPath> priv = Arrays.asList(HandleAndLocalPath.of(relative("MANIFEST"), "MANIFEST"));
        return IncrementalRemoteKeyedStateHandle.restore(
                new UUID(1, 2), GROUPS, 7, shared, priv, relative("meta"), 194, new StateHandleID("incremental"));
    }

    private static org.apache.flink.runtime.state.KeyedStateHandle changelogBase() {
        return changelog();
    }

    private static ChangelogStateBackendHandleImpl changelog() {
        List<Tuple2<StreamStateHandle, Long>> files = Arrays.asList(Tuple2.of(file("dstl", 77), 5L));
        return ChangelogStateBackendHandleImpl.restore(
                Arrays.asList(incremental()),
                Arrays.asList(
                        ChangelogStateHandleStreamImpl.restore(
                                files, GROUPS, 72, 72, "filesystem", new StateHandleID("changes")),
                        InMemoryChangelogStateHandle.restore(
                                Arrays.asList(StateChange.ofDataChange(1, new byte[] {1, 2})),
                                SequenceNumber.of(1), SequenceNumber.of(2), GROUPS, new StateHandleID("in memory"))),
                GROUPS, 7, 3, 300, new StateHandleID("changelog"));
    }

    private static RelativeFileStateHandle relative(String name) {
        return new RelativeFileStateHandle(new Path(JOB + "/chk-7/" + name), name, 50);
    }

    private static FileStateHandle file(String name, long len) {
        return new FileStateHandle(new Path(JOB + "/shared/" + name), len);
    }

    private static SegmentFileStateHandle segment(String name, long start, long len) {
        return new SegmentFileStateHandle(new Path(JOB + "/shared/job_j_op_o_0_4/" + name), start, len,
                CheckpointedStateScope.SHARED, new LogicalFileId("logical"));
    }
}
