"""The parts of the Flink test, in reading order.

tools       what has to be installed first: Flink, versitygw, the job
processes   child processes with a log each, deadlines, and an end for all of them
s3          just enough of S3 to make a bucket and to list one
storage     where Flink writes to: versitygw itself, or Esker on a local disk or on versitygw
cluster     a Flink cluster, its jobs, and what its REST interface says about them
expected    what the job must have counted
scenario    the story that the test tells
report      what a checkpoint cost
"""
