"""The Spark side: streaming queries whose checkpoints, state and output are on S3A.

Reads commands, a line of JSON each, and answers with lines that begin with `=> `. A query that fails is started again
on its checkpoint; the answer to `stop` tells how often. Arguments: a file with the session's settings, as JSON.
"""

import json
import os
import select
import sys
from pathlib import Path

from pyspark.sql import SparkSession
from pyspark.sql.functions import col

KEYS = 100
RESTARTS_MAX = 20


class Queries:
    """Counts numbers by key into local files, one a batch, and copies the numbers themselves into a folder on S3A."""

    def __init__(self, spark, name, base, folder, rows, partitions, settings, copies):
        self.spark, self.base, self.folder, self.rows, self.copies = spark, base, Path(folder), rows, copies
        self.folder.mkdir(parents=True, exist_ok=True)
        for key, value in {**settings, "spark.sql.shuffle.partitions": partitions}.items():
            spark.conf.set(key, value)
        self.name, self.restarts = name, []
        self.running = {"counts": self._start_counts()} | ({"copies": self._start_copies()} if copies else {})

    def newest(self):
        """The newest batch that all queries have gone through, or -1. Starts again what has failed."""
        newest = []
        for name, query in self.running.items():
            if not query.isActive:
                self.restarts.append(f"{name}: {str(query.exception())[:2000]}")
                print(f"{name} failed: {query.exception()}", file=sys.stderr, flush=True)
                if len(self.restarts) > RESTARTS_MAX:
                    raise SystemExit("the queries fail for ever")
                self.running[name] = self._start_counts() if name == "counts" else self._start_copies()
            progress = query.lastProgress
            newest.append(progress["batchId"] if progress else -1)
        return min(newest)

    def stop(self):
        for query in self.running.values():
            query.stop()
        told = {"restarts": self.restarts}
        if self.copies:
            values = self.spark.read.parquet(f"{self.base}/copies").select("value")
            told["copies"] = [row["value"] for row in values.collect()]
        return told

    def _start_counts(self):
        counts = self._numbers().groupBy((col("value") % KEYS).alias("key")).count()
        return (counts.writeStream.outputMode("update").foreachBatch(self._save).queryName(f"{self.name}-counts")
                .option("checkpointLocation", f"{self.base}/counts-checkpoint").start())

    def _start_copies(self):
        return (self._numbers().writeStream.format("parquet").option("path", f"{self.base}/copies")
                .option("checkpointLocation", f"{self.base}/copies-checkpoint").queryName(f"{self.name}-copies")
                .start())

    def _numbers(self):
        """Batch n has the numbers from n * rows on, however often it is tried."""
        return (self.spark.readStream.format("rate-micro-batch").option("rowsPerBatch", self.rows)
                .option("numPartitions", 2).load())

    def _save(self, batch, number):
        """A batch that is carried out again has to say the same."""
        counts = {str(row["key"]): row["count"] for row in batch.collect()}
        file = self.folder / f"{number}.json"
        if file.exists() and json.loads(file.read_text()) != counts:
            (self.folder / f"{number}.differs.json").write_text(json.dumps(counts))
        draft = self.folder / f"{number}.draft"
        draft.write_text(json.dumps(counts))
        os.replace(draft, file)


def main():
    builder = SparkSession.builder.master("local[4]")
    for key, value in json.loads(Path(sys.argv[1]).read_text()).items():
        builder = builder.config(key, value)
    spark = builder.getOrCreate()
    spark.sparkContext.setLogLevel("WARN")
    say({"up": spark.version})
    queries, told = None, None
    while True:
        if select.select([sys.stdin], [], [], 0.05)[0]:
            line = sys.stdin.readline()
            if not line:
                break
            command = json.loads(line)
            if "start" in command:
                queries, told = Queries(spark, **command["start"]), None
                say({"started": True})
            else:
                say({"stopped": queries.stop()})
                queries = None
        if queries and (newest := queries.newest()) != told:
            told = newest
            say({"batch": newest})


def say(answer):
    os.write(ANSWERS, f"=> {json.dumps(answer)}\n".encode())


# What Spark prints goes to the log.
ANSWERS = os.dup(1)
os.dup2(2, 1)
main()
