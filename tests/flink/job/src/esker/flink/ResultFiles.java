package esker.flink;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.util.ArrayList;
import java.util.List;
import org.apache.flink.api.connector.sink2.Sink;
import org.apache.flink.api.connector.sink2.SinkWriter;
import org.apache.flink.api.connector.sink2.WriterInitContext;

/**
 * Writes the lines of each subtask to {@code <folder>/<name>-<subtask>.tsv}.
 *
 * <p>Lines come once, at the end of the input, and are on disk before the checkpoint that follows
 * them: {@code flush} is called ahead of every checkpoint and at the end. A subtask that is restored
 * before that checkpoint gets its lines again and replaces the file; one that is restored after it
 * gets none and leaves the file alone.
 */
final class ResultFiles implements Sink<String> {
    private final String folder;
    private final String name;

    ResultFiles(String folder, String name) {
        this.folder = folder;
        this.name = name;
    }

    @Override
    public SinkWriter<String> createWriter(WriterInitContext context) {
        String file = name + "-" + context.getTaskInfo().getIndexOfThisSubtask() + ".tsv";
        return new Writer(Path.of(folder, file));
    }

    private static final class Writer implements SinkWriter<String> {
        private final Path file;
        private final List<String> lines = new ArrayList<>();
        private int written;

        Writer(Path file) {
            this.file = file;
        }

        @Override
        public void write(String line, Context context) {
            lines.add(line);
        }

        @Override
        public void flush(boolean endOfInput) throws IOException {
            if (lines.size() == written) {
                return;
            }
            Path draft = file.resolveSibling(file.getFileName() + ".draft");
            Files.write(draft, lines);
            Files.move(draft, file, StandardCopyOption.ATOMIC_MOVE, StandardCopyOption.REPLACE_EXISTING);
            written = lines.size();
        }

        @Override
        public void close() {}
    }
}
