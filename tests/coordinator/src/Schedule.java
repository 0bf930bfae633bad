package org.apache.flink.runtime.checkpoint;

import java.util.ArrayList;
import java.util.List;
import org.apache.flink.shaded.jackson2.com.fasterxml.jackson.databind.JsonNode;

/** A schedule: what happens to a job, and when. README.md has the format. */
record Schedule(String name, JsonNode settings, List<Operator> operators, List<Event> events) {
    record Operator(String id, int parallelism, boolean unionListState) {}

    /** At {@code at} ms, {@code what} happens, with these arguments. */
    record Event(long at, String what, List<String> arguments) {
        String argument(int number, String otherwise) {
            return number < arguments.size() ? arguments.get(number) : otherwise;
        }
    }

    static Schedule of(JsonNode json) {
        List<Operator> operators = new ArrayList<>();
        for (JsonNode operator : json.path("operators")) {
            operators.add(new Operator(
                    operator.get(0).asText(), operator.get(1).asInt(), operator.path(2).asText().equals("union")));
        }
        if (operators.isEmpty()) {
            operators.add(new Operator("source", 2, false));
            operators.add(new Operator("count", 2, false));
        }
        List<Event> events = new ArrayList<>();
        for (JsonNode event : json.get("events")) {
            List<String> arguments = new ArrayList<>();
            for (int number = 2; number < event.size(); number++) {
                arguments.add(event.get(number).asText());
            }
            events.add(new Event(event.get(0).asLong(), event.get(1).asText(), arguments));
        }
        return new Schedule(json.get("name").asText(), json.path("settings"), operators, events);
    }

    long number(String setting, long otherwise) {
        return settings.path(setting).asLong(otherwise);
    }

    boolean is(String setting, boolean otherwise) {
        return settings.path(setting).asBoolean(otherwise);
    }
}
