package org.apache.flink.runtime.checkpoint;

import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.TreeSet;

/**
 * What was seen of a coordinator, by time. Within one instant comes first, in order, what tasks are told; then, sorted, what is
 * freed and answered: there is no order in that which anybody could rely on.
 */
final class Trace {
    private final VirtualTime time;
    private final Map<Long, List<String>> told = new TreeMap<>();
    private final Map<Long, List<String>> others = new TreeMap<>();

    Trace(VirtualTime time) {
        this.time = time;
    }

    void told(String what) {
        told.computeIfAbsent(time.now(), at -> new ArrayList<>()).add(what);
    }

    void other(String what) {
        others.computeIfAbsent(time.now(), at -> new ArrayList<>()).add(what);
    }

    /** Each instant at which something was seen: its time, then what. */
    List<List<Object>> instants() {
        Map<Long, List<Object>> instants = new TreeMap<>();
        told.forEach((at, seen) -> instants.computeIfAbsent(at, Trace::instant).addAll(seen));
        others.forEach((at, seen) -> {
            List<Object> instant = instants.computeIfAbsent(at, Trace::instant);
            new TreeSet<>(seen).forEach(what -> {
                int times = Collections.frequency(seen, what);
                instant.add(times == 1 ? what : times + " x " + what);
            });
        });
        return new ArrayList<>(instants.values());
    }

    private static List<Object> instant(long at) {
        List<Object> instant = new ArrayList<>();
        instant.add(at);
        return instant;
    }
}
