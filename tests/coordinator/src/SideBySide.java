package org.apache.flink.runtime.checkpoint;

import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.util.LinkedHashMap;
import java.util.Map;
import org.apache.flink.shaded.jackson2.com.fasterxml.jackson.databind.ObjectMapper;

/**
 * Runs schedules through Flink's own {@link CheckpointCoordinator}. Reads one schedule a line, and writes for each what was
 * seen, one line each, too: see README.md.
 */
public final class SideBySide {
    private SideBySide() {}

    public static void main(String[] arguments) throws Exception {
        ObjectMapper json = new ObjectMapper();
        PrintStream out = new PrintStream(System.out, false, StandardCharsets.UTF_8);
        BufferedReader in = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line = in.readLine(); line != null; line = in.readLine()) {
            Schedule schedule = Schedule.of(json.readTree(line));
            Map<String, Object> seen = new LinkedHashMap<>();
            seen.put("name", schedule.name());
            try {
                seen.put("flink", new Player(schedule).play());
            } catch (Exception failure) {
                throw new IllegalStateException("schedule " + schedule.name(), failure);
            }
            out.println(json.writeValueAsString(seen));
        }
        out.flush();
    }
}
