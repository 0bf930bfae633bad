from datetime import timedelta

from minio import Minio
from minio.commonconfig import CopySource
from minio.deleteobjects import DeleteObject

import serve


class MinioPy:
    NOT_OFFERED = {
        "odd_names_without": "all", "put_if_absent": "no conditions", "put_if_match": "no conditions",
        "abort": "no uploads of others",
    }

    def __init__(self):
        self.client = Minio(serve.HOST, access_key=serve.ACCESS_KEY, secret_key=serve.SECRET_KEY, secure=False,
                            region=serve.REGION)

    def put(self, bucket, key, file):
        return {"etag": self.client.fput_object(bucket, key, file).etag}

    def put_stream(self, bucket, key, file):
        told = self.client.put_object(bucket, key, serve.Pipe(file), length=-1, part_size=5 * serve.MIB)
        return {"etag": told.etag}

    def get(self, bucket, key, to):
        self.client.fget_object(bucket, key, to)

    def range(self, bucket, key, offset, length, to):
        response = self.client.get_object(bucket, key, offset=offset, length=length)
        try:
            serve.write(to, response.read())
        finally:
            response.close()
            response.release_conn()

    def head(self, bucket, key):
        told = self.client.stat_object(bucket, key)
        return {"size": told.size, "etag": told.etag}

    def list(self, bucket, prefix, page):
        return {"keys": [entry.object_name for entry in self.client.list_objects(bucket, prefix, recursive=True)]}

    def list_folder(self, bucket, prefix):
        listed = list(self.client.list_objects(bucket, prefix))
        return {"keys": [entry.object_name for entry in listed if not entry.is_dir],
                "folders": [entry.object_name for entry in listed if entry.is_dir]}

    def copy(self, bucket, key, to):
        self.client.copy_object(bucket, to, CopySource(bucket, key))

    def delete(self, bucket, key):
        self.client.remove_object(bucket, key)

    def delete_many(self, bucket, keys, prefix):
        self.delete_some(bucket, keys)

    def delete_some(self, bucket, keys):
        errors = list(self.client.remove_objects(bucket, [DeleteObject(key) for key in keys]))
        if errors:
            raise RuntimeError(f"{errors}")

    def multipart(self, bucket, key, file, part_bytes):
        return {"etag": self.client.fput_object(bucket, key, file, part_size=part_bytes).etag}

    def give_up(self, bucket, key, file):
        source = serve.Pipe(file, fail_after=12 * serve.MIB)
        self.client.put_object(bucket, key, source, length=-1, part_size=5 * serve.MIB)

    def presign_get(self, bucket, key, seconds):
        return {"url": self.client.presigned_get_object(bucket, key, expires=timedelta(seconds=seconds))}

    def presign_put(self, bucket, key, seconds):
        return {"url": self.client.presigned_put_object(bucket, key, expires=timedelta(seconds=seconds))}


def kind_of(error):
    return {"NoSuchKey": "missing", "PreconditionFailed": "precondition"}.get(getattr(error, "code", None))


serve.serve(MinioPy(), kind_of)
