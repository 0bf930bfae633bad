package esker.flink;

import java.io.DataInputStream;
import java.io.FileInputStream;
import java.lang.reflect.Array;
import java.lang.reflect.Field;
import java.lang.reflect.Modifier;
import java.util.Collection;
import java.util.Collections;
import java.util.IdentityHashMap;
import java.util.Map;
import java.util.Optional;
import java.util.Set;
import java.util.TreeSet;
import org.apache.flink.runtime.checkpoint.Checkpoints;
import org.apache.flink.runtime.checkpoint.metadata.CheckpointMetadata;
import org.apache.flink.runtime.state.filemerging.EmptySegmentFileStateHandle;
import org.apache.flink.runtime.state.filemerging.SegmentFileStateHandle;
import org.apache.flink.runtime.state.filesystem.FileStateHandle;
import org.apache.flink.runtime.state.filesystem.RelativeFileStateHandle;

/**
 * Says what a _metadata names, as Flink's own reader reads it: its checkpoint, then a line for each file, sorted:
 * absolute or relative, path, start and length, with tabs between them.
 *
 * <p>Handles are found by going over the whole object, so this knows nothing of where Flink keeps them.
 */
public final class MetadataNames {
    private final Set<String> files = new TreeSet<>();
    private final Set<Object> seen = Collections.newSetFromMap(new IdentityHashMap<>());

    public static void main(String[] paths) throws Exception {
        for (String path : paths) {
            try (DataInputStream in = new DataInputStream(new FileInputStream(path))) {
                CheckpointMetadata metadata =
                        Checkpoints.loadCheckpointMetadata(in, MetadataNames.class.getClassLoader(), path);
                MetadataNames names = new MetadataNames();
                names.visit(metadata);
                System.out.println("checkpoint\t" + metadata.getCheckpointId());
                names.files.forEach(System.out::println);
            }
        }
    }

    private void visit(Object object) throws IllegalAccessException {
        if (object == null || object instanceof EmptySegmentFileStateHandle || !seen.add(object)) {
            return;
        }
        if (object instanceof SegmentFileStateHandle) {
            SegmentFileStateHandle segment = (SegmentFileStateHandle) object;
            add("absolute", segment.getFilePath().toString(), segment.getStartPos(), segment.getStateSize());
        } else if (object instanceof RelativeFileStateHandle) {
            RelativeFileStateHandle file = (RelativeFileStateHandle) object;
            add("relative", file.getRelativePath(), 0, file.getStateSize());
        } else if (object instanceof FileStateHandle) {
            FileStateHandle file = (FileStateHandle) object;
            add("absolute", file.getFilePath().toString(), 0, file.getStateSize());
        } else if (object instanceof Collection) {
            for (Object part : (Collection<?>) object) {
                visit(part);
            }
        } else if (object instanceof Map) {
            visit(((Map<?, ?>) object).values());
        } else if (object instanceof Optional) {
            visit(((Optional<?>) object).orElse(null));
        } else if (object.getClass().isArray() && !object.getClass().getComponentType().isPrimitive()) {
            for (int at = 0; at < Array.getLength(object); at++) {
                visit(Array.get(object, at));
            }
        } else if (object.getClass().getName().startsWith("org.apache.flink.") && !object.getClass().isEnum()) {
            visitFields(object);
        }
    }

    private void visitFields(Object object) throws IllegalAccessException {
        for (Class<?> type = object.getClass(); type != Object.class; type = type.getSuperclass()) {
            for (Field field : type.getDeclaredFields()) {
                if (!Modifier.isStatic(field.getModifiers()) && !field.getType().isPrimitive()) {
                    // A class of Java's own that a handle extends is closed to this, and holds no handle.
                    if (type.getName().startsWith("org.apache.flink.")) {
                        field.setAccessible(true);
                        visit(field.get(object));
                    }
                }
            }
        }
    }

    private void add(String kind, String path, long start, long len) {
        files.add(kind + "\t" + path + "\t" + start + "\t" + len);
    }
}
