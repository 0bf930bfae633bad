package esker.flink;

import java.util.HashMap;
import java.util.Map;

/** The arguments of a job, each {@code --name value} or {@code --name} alone; Flink's own parser is not in every version. */
final class Arguments {
    private final Map<String, String> values = new HashMap<>();

    Arguments(String[] args) {
        for (int at = 0; at < args.length; at++) {
            boolean hasValue = at + 1 < args.length && !args[at + 1].startsWith("--");
            values.put(args[at].substring("--".length()), hasValue ? args[++at] : "");
        }
    }

    boolean has(String name) {
        return values.containsKey(name);
    }

    String get(String name) {
        if (!has(name)) {
            throw new IllegalArgumentException("--" + name + " is missing");
        }
        return values.get(name);
    }

    long getLong(String name) {
        return Long.parseLong(get(name));
    }

    double getDouble(String name) {
        return Double.parseDouble(get(name));
    }
}
