import random
from concurrent.futures import ThreadPoolExecutor

import pyarrow
from deltalake import DeltaTable, write_deltalake
from deltalake.exceptions import CommitFailedError

import serve

OPTIONS = {"AWS_ENDPOINT_URL": serve.ENDPOINT, "AWS_ACCESS_KEY_ID": serve.ACCESS_KEY,
           "AWS_SECRET_ACCESS_KEY": serve.SECRET_KEY, "AWS_REGION": serve.REGION, "AWS_ALLOW_HTTP": "true"}


class DeltaLake:
    NOT_OFFERED = {}

    def create(self, bucket, table):
        write_deltalake(f"s3://{bucket}/{table}", _rows(0), storage_options=OPTIONS, partition_by=["third"])

    def ids(self, bucket, table):
        return {"ids": self._open(bucket, table).to_pyarrow_table()["id"].to_pylist()}

    def append_numbers(self, bucket, table, rows):
        write_deltalake(f"s3://{bucket}/{table}", _numbers(rows), storage_options=OPTIONS)

    def rows(self, bucket, table):
        found = self._open(bucket, table).to_pyarrow_table()
        return {"rows": found.num_rows, "sum": sum(found["number"].to_pylist()),
                "expected": sum(_numbers(found.num_rows)["number"].to_pylist())}

    def one_row(self, bucket, table):
        found = self._open(bucket, table).to_pyarrow_table(columns=["number"], filters=[("id", "=", 1_234_567)])
        return {"found": found["number"].to_pylist(), "expected": [_numbers(1_234_568)["number"][-1].as_py()]}

    def append_at_once(self, bucket, table, writers, appends):
        def append(number):
            for _ in range(100):
                try:
                    return write_deltalake(
                        f"s3://{bucket}/{table}", _rows(number), mode="append", storage_options=OPTIONS)
                except CommitFailedError:
                    continue
            raise RuntimeError(f"append {number} never won")

        with ThreadPoolExecutor(writers) as pool:
            list(pool.map(append, range(1, appends + 1)))

    def versions(self, bucket, table):
        return {"versions": [entry["version"] for entry in self._open(bucket, table).history()]}

    def create_partitions(self, bucket, table, values):
        rows = pyarrow.table({"value": values, "id": list(range(len(values)))})
        write_deltalake(f"s3://{bucket}/{table}", rows, storage_options=OPTIONS, partition_by=["value"])

    def partitions(self, bucket, table):
        return {"values": self._open(bucket, table).to_pyarrow_table()["value"].to_pylist()}

    def compact_and_vacuum(self, bucket, table):
        table = self._open(bucket, table)
        table.optimize.compact()
        table.create_checkpoint()
        # All that is not named, also what an append wrote that then lost.
        table.vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False, full=True)

    def _open(self, bucket, table):
        return DeltaTable(f"s3://{bucket}/{table}", storage_options=OPTIONS)


def _rows(number):
    return pyarrow.table({"id": [number], "third": [number % 3]})


def _numbers(rows):
    draw = random.Random(3)
    return pyarrow.table({"id": list(range(rows)), "number": [draw.getrandbits(62) for _ in range(rows)]})


serve.serve(DeltaLake(), lambda error: None)
