"""A streaming query that counts by key, with its checkpoints on Esker.

    spark-submit --packages org.apache.hadoop:hadoop-aws:<Hadoop version of your Spark> \
        --properties-file examples/spark/spark-defaults.conf examples/spark/count.py [seconds] [checkpoint location]

Run it a second time: it goes on from its checkpoint, and the batch numbers say so.
"""

import sys

from pyspark.sql import SparkSession
from pyspark.sql.functions import col

SECONDS = int(sys.argv[1]) if len(sys.argv) > 1 else 30
CHECKPOINTS = sys.argv[2] if len(sys.argv) > 2 else "s3a://checkpoints/spark/count"

spark = SparkSession.builder.appName("esker-count").config("spark.sql.shuffle.partitions", 4).getOrCreate()
spark.sparkContext.setLogLevel("WARN")
numbers = spark.readStream.format("rate").option("rowsPerSecond", 100).load()
counts = numbers.groupBy((col("value") % 10).alias("key")).count()


def show(batch, number):
    print(f"batch {number}: {batch.agg({'count': 'sum'}).first()[0]} rows counted", flush=True)


query = (counts.writeStream.outputMode("complete").foreachBatch(show)
         .option("checkpointLocation", CHECKPOINTS).trigger(processingTime="5 seconds").start())
query.awaitTermination(SECONDS)
query.stop()
spark.stop()
