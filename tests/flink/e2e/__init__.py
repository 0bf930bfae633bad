"""The parts of the Flink test, in reading order.

tools       what has to be installed first: Flink, versitygw, the job
processes   child processes with a log each, deadlines, and an end for all of them
s3          just enough of S3 to make a bucket and to list one
storage     where Flink writes to: versitygw itself, or Esker on a local disk or on versitygw
hdfs        the same with HDFS
cluster     a Flink cluster, its jobs, and what its REST interface says about them
proxy       holds a request between Flink and Esker at the moment at which the test kills
expected    what the job must have counted
report      what a checkpoint cost
timeline    space over time, as Esker says
trace       which requests of Flink each write to the S3 server answered
story       what all stories do with a job
scenario    exact state while everything under it is killed
savepoints  exact state when a job goes on from a savepoint with fewer and with more subtasks
matrix      which Flink, file system and kind of state these two are told with
sink        every record in the output once, whatever part of an upload Esker dies in
space       what `du` says while a job with many small checkpoints runs
"""
