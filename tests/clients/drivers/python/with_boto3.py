import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config

import serve


class Boto3:
    NOT_OFFERED = {"odd_names_without": "all"}

    def __init__(self):
        # It presigns with version 2 of the signature unless it is told so.
        self.s3 = boto3.client("s3", endpoint_url=serve.ENDPOINT, config=Config(signature_version="s3v4"))

    def put(self, bucket, key, file):
        self.s3.upload_file(file, bucket, key)

    def put_stream(self, bucket, key, file):
        self.s3.upload_fileobj(serve.Pipe(file), bucket, key)

    def get(self, bucket, key, to):
        self.s3.download_file(bucket, key, to)

    def range(self, bucket, key, offset, length, to):
        got = self.s3.get_object(Bucket=bucket, Key=key, Range=f"bytes={offset}-{offset + length - 1}")
        serve.write(to, got["Body"].read())

    def head(self, bucket, key):
        told = self.s3.head_object(Bucket=bucket, Key=key)
        return {"size": told["ContentLength"], "etag": told["ETag"]}

    def list(self, bucket, prefix, page):
        pages = self.s3.get_paginator("list_objects_v2").paginate(
            Bucket=bucket, Prefix=prefix, PaginationConfig={"PageSize": page})
        return {"keys": [entry["Key"] for page in pages for entry in page.get("Contents", [])]}

    def list_folder(self, bucket, prefix):
        told = self.s3.list_objects_v2(Bucket=bucket, Prefix=prefix, Delimiter="/")
        return {"keys": [entry["Key"] for entry in told["Contents"]],
                "folders": [entry["Prefix"] for entry in told["CommonPrefixes"]]}

    def copy(self, bucket, key, to):
        self.s3.copy({"Bucket": bucket, "Key": key}, bucket, to)

    def copy_if_absent(self, bucket, key, to):
        self.s3.copy_object(Bucket=bucket, Key=to, CopySource={"Bucket": bucket, "Key": key}, IfNoneMatch="*")

    def put_if_absent(self, bucket, key, file):
        return self._put(bucket, key, file, IfNoneMatch="*")

    def put_if_match(self, bucket, key, file, etag):
        return self._put(bucket, key, file, IfMatch=etag)

    def _put(self, bucket, key, file, **condition):
        return {"etag": self.s3.put_object(Bucket=bucket, Key=key, Body=serve.read(file), **condition)["ETag"]}

    def delete(self, bucket, key):
        self.s3.delete_object(Bucket=bucket, Key=key)

    def delete_many(self, bucket, keys, prefix):
        self.delete_some(bucket, keys)

    def delete_some(self, bucket, keys):
        told = self.s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": key} for key in keys]})
        deleted = sorted(entry["Key"] for entry in told["Deleted"])
        if told.get("Errors") or deleted != sorted(keys):
            raise RuntimeError(f"{told.get('Errors')} {deleted}")

    def multipart(self, bucket, key, file, part_bytes):
        self.s3.upload_file(file, bucket, key, Config=TransferConfig(
            multipart_threshold=part_bytes, multipart_chunksize=part_bytes))

    def abort(self, bucket, key, upload):
        told = self.s3.list_multipart_uploads(Bucket=bucket)["Uploads"]
        if [(entry["Key"], entry["UploadId"]) for entry in told] != [(key, upload)]:
            raise RuntimeError(f"{told}")
        self.s3.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload)

    def give_up(self, bucket, key, file):
        self.s3.upload_fileobj(serve.Pipe(file, fail_after=18 * serve.MIB), bucket, key)

    def presign_get(self, bucket, key, seconds):
        return self._presign("get_object", bucket, key, seconds)

    def presign_put(self, bucket, key, seconds):
        return self._presign("put_object", bucket, key, seconds)

    def _presign(self, operation, bucket, key, seconds):
        return {"url": self.s3.generate_presigned_url(operation, {"Bucket": bucket, "Key": key}, seconds)}


serve.serve(Boto3(), serve.kind_of_botocore)
