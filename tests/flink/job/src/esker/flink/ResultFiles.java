package esker.flink;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.util.ArrayList;
import java.util.List;
import org.apache.flink.runtime.state.FunctionInitializationContext;
import org.apache.flink.runtime.state.FunctionSnapshotContext;
import org.apache.flink.streaming.api.checkpoint.CheckpointedFunction;
import org.apache.flink.streaming.api.functions.ProcessFunction;
import org.apache.flink.util.Collector;

/**
 * Writes the lines of each subtask to {@code <folder>/<name>-<subtask>.tsv}.
 *
 * <p>Lines come once, at the end of the input, and are on disk before the checkpoint that follows
 * them, which is the last one: a job that has come to its end takes one more. A subtask that is
 * restored before that checkpoint gets its lines again and replaces the file; one that is restored
 * after it gets none and leaves the file alone.
 *
 * <p>It is no sink because Flink 1.20 and 2.x have no sink in common.
 */
final class ResultFiles extends ProcessFunction<String, Void> implements CheckpointedFunction {
    private final String folder;
    private final String name;

    private transient Path file;
    private transient List<String> lines;
    private transient int written;

    ResultFiles(String folder, String name) {
        this.folder = folder;
        this.name = name;
    }

    @Override
    public void initializeState(FunctionInitializationContext context) {
        file = Path.of(folder, name + "-" + getRuntimeContext().getTaskInfo().getIndexOfThisSubtask() + ".tsv");
        lines = new ArrayList<>();
        written = 0;
    }

    @Override
    public void processElement(String line, Context context, Collector<Void> out) {
        lines.add(line);
    }

    @Override
    public void snapshotState(FunctionSnapshotContext context) throws IOException {
        if (lines.size() == written) {
            return;
        }
        Path draft = file.resolveSibling(file.getFileName() + ".draft");
        Files.write(draft, lines);
        Files.move(draft, file, StandardCopyOption.ATOMIC_MOVE, StandardCopyOption.REPLACE_EXISTING);
        written = lines.size();
    }
}
