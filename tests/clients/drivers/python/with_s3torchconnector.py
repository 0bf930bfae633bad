"""The client of s3torchconnector, without PyTorch: all of its requests come from here."""

from s3torchconnectorclient._mountpoint_s3_client import MountpointS3Client

import serve


class S3TorchConnector:
    NOT_OFFERED = {
        "put_if_absent": "no conditions", "put_if_match": "no conditions",
        "delete_many": "one by one", "delete_some": "one by one", "multipart": "it chooses the parts",
        "abort": "no uploads of others", "give_up": "a stream cannot be given up",
        "presign_get": "no URLs", "presign_put": "no URLs",
    }

    def __init__(self):
        self.client = MountpointS3Client(serve.REGION, endpoint=serve.ENDPOINT, force_path_style=True)

    def odd_names_without(self, bucket):
        return {"names": [], "copy": "it does not encode the keys of copies"}

    def put(self, bucket, key, file):
        target = self.client.put_object(bucket, key)
        target.write(serve.read(file))
        target.close()

    def put_stream(self, bucket, key, file):
        target = self.client.put_object(bucket, key)
        for piece in serve.Pipe(file).pieces():
            target.write(piece)
        target.close()

    def get(self, bucket, key, to):
        serve.write(to, b"".join(self.client.get_object(bucket, key)))

    def range(self, bucket, key, offset, length, to):
        serve.write(to, b"".join(self.client.get_object(bucket, key, start=offset, end=offset + length)))

    def head(self, bucket, key):
        told = self.client.head_object(bucket, key)
        return {"size": told.size, "etag": told.etag}

    def list(self, bucket, prefix, page):
        pages = self.client.list_objects(bucket, prefix, max_keys=page)
        return {"keys": [entry.key for page in pages for entry in page.object_info]}

    def list_folder(self, bucket, prefix):
        pages = list(self.client.list_objects(bucket, prefix, delimiter="/"))
        return {"keys": [entry.key for page in pages for entry in page.object_info],
                "folders": [folder for page in pages for folder in page.common_prefixes]}

    def copy(self, bucket, key, to):
        self.client.copy_object(bucket, key, bucket, to)

    def delete(self, bucket, key):
        self.client.delete_object(bucket, key)


def kind_of(error):
    text = str(error)
    if "does not exist" in text or "not found" in text.lower() or "NoSuchKey" in text:
        return "missing"


serve.serve(S3TorchConnector(), kind_of)
