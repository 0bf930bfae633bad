"""What a checkpoint cost, as a table and as JSON."""

from dataclasses import asdict, dataclass, field


@dataclass
class Measurement:
    """What happened during a number of undisturbed checkpoints."""

    storage: str
    checkpoints: int
    seconds: float
    # Requests that reached the backend, by operation.
    requests: dict
    objects_created: int
    # Esker's own counters over the same time.
    esker: dict
    # What Flink sees at the end.
    flink_objects: int
    flink_bytes: int
    object_bytes_median: int
    object_bytes_max: int
    # What the backend holds at the end.
    held_files: int
    held_bytes: int


@dataclass
class Report:
    plugin: str
    backend: str
    measurements: list = field(default_factory=list)
    # One entry for each time something was killed.
    kills: list = field(default_factory=list)
    restored_checkpoint: str = ""
    # What the kills had left that no checkpoint named.
    orphans_deleted: int = 0
    keys_compared: int = 0
    numbers: int = 0
    # What Flink has not deleted at the very end, and what the backend holds for it.
    objects_left: int = 0
    bytes_left: int = 0
    held_files: int = 0
    held_bytes: int = 0
    seconds: float = 0
    # Space over time, one row every few seconds.
    timeline: list = field(default_factory=list)

    def as_json(self):
        return asdict(self)

    def check(self):
        """The story has failed before if anything was wrong."""

    def table(self):
        """One row for each figure, one column for each measurement."""
        columns = self.measurements
        operations = sorted({operation for column in columns for operation in column.requests})
        counters = sorted({counter for column in columns for counter in column.esker})
        rows = [
            ["", *(column.storage for column in columns)],
            ["checkpoints measured", *(str(column.checkpoints) for column in columns)],
            ["per checkpoint:", *("" for _ in columns)],
            ["  objects created", *_per_checkpoint(columns, lambda column: column.objects_created)],
            ["  backend requests", *_per_checkpoint(columns, lambda column: sum(column.requests.values()))],
        ]
        for name in operations:
            rows.append([f"    {name}", *_per_checkpoint(columns, lambda column: column.requests.get(name))])
        for name in counters:
            rows.append([f"  {name}", *_per_checkpoint(columns, lambda column: column.esker.get(name))])
        rows += [
            ["at the end:", *("" for _ in columns)],
            ["  Flink's objects", *(str(column.flink_objects) for column in columns)],
            ["  Flink's bytes", *(f"{column.flink_bytes:,}" for column in columns)],
            ["  median and largest", *(f"{column.object_bytes_median:,} {column.object_bytes_max:,}" for column in columns)],
            ["  files of the backend", *(str(column.held_files) for column in columns)],
            ["  bytes of the backend", *(f"{column.held_bytes:,}" for column in columns)],
        ]
        return aligned(rows) + self._timeline_table()

    def _timeline_table(self):
        """Space over time, in about twenty rows."""
        if not self.timeline:
            return ""
        rows = [["seconds", "segments", "files", "live bytes", "held bytes", "amplification", "to delete", "freed", "copied"]]
        for row in self.timeline[::max(1, len(self.timeline) // 20)]:
            amplification = "-" if row["amplification"] is None else f"{row['amplification']:.2f}"
            numbers = (row["live_bytes"], row["physical_bytes"], row["waiting_bytes"], row["freed_bytes"], row["copied_bytes"])
            live, held, waiting, freed, copied = (f"{number:,}" for number in numbers)
            rows.append([str(row["seconds"]), str(row["segments"]), str(row["files"]), live, held, amplification, waiting,
                         freed, copied])
        return "\n\n" + aligned(rows)


def _per_checkpoint(columns, number_of):
    numbers = [number_of(column) for column in columns]
    return [
        "-" if number is None else f"{number / column.checkpoints:.1f}"
        for number, column in zip(numbers, columns)
    ]


def aligned(rows):
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))]).rstrip()
        for row in rows)
