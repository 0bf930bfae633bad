from pyarrow import fs

import serve


class PyArrow:
    NOT_OFFERED = {
        "put_if_absent": "no conditions", "put_if_match": "no conditions",
        "delete_some": "batches are for folders alone",
        "multipart": "it chooses the parts", "abort": "no uploads of others", "give_up": "a stream cannot be given up",
        "presign_get": "no URLs", "presign_put": "no URLs",
    }

    def __init__(self):
        self.fs = fs.S3FileSystem(
            access_key=serve.ACCESS_KEY, secret_key=serve.SECRET_KEY, endpoint_override=serve.HOST, scheme="http",
            region=serve.REGION, allow_bucket_creation=False)

    def odd_names_without(self, bucket):
        return {"names": ["a//b", "//", "folder/"], "why": "it refuses empty segments and slashes at the end"}

    def put(self, bucket, key, file):
        with self.fs.open_output_stream(f"{bucket}/{key}") as target:
            target.write(serve.read(file))

    def put_stream(self, bucket, key, file):
        with self.fs.open_output_stream(f"{bucket}/{key}") as target:
            for piece in serve.Pipe(file).pieces():
                target.write(piece)

    def get(self, bucket, key, to):
        with self.fs.open_input_stream(f"{bucket}/{key}") as source:
            serve.write(to, source.read())

    def range(self, bucket, key, offset, length, to):
        with self.fs.open_input_file(f"{bucket}/{key}") as source:
            serve.write(to, source.read_at(length, offset))

    def head(self, bucket, key):
        told = self.fs.get_file_info(f"{bucket}/{key}")
        if told.type == fs.FileType.NotFound:
            raise FileNotFoundError(key)
        return {"size": told.size}

    def list(self, bucket, prefix, page):
        return {"keys": self._listed(bucket, prefix, fs.FileType.File, recursive=True)}

    def list_folder(self, bucket, prefix):
        return {"keys": self._listed(bucket, prefix, fs.FileType.File),
                "folders": self._listed(bucket, prefix, fs.FileType.Directory)}

    def _listed(self, bucket, prefix, kind, recursive=False):
        told = self.fs.get_file_info(fs.FileSelector(f"{bucket}/{prefix}", recursive=recursive))
        return [entry.path.removeprefix(f"{bucket}/") for entry in told if entry.type == kind]

    def copy(self, bucket, key, to):
        self.fs.copy_file(f"{bucket}/{key}", f"{bucket}/{to}")

    def delete(self, bucket, key):
        self.fs.delete_file(f"{bucket}/{key}")

    def delete_many(self, bucket, keys, prefix):
        self.fs.delete_dir(f"{bucket}/{prefix}")


serve.serve(PyArrow(), serve.kind_by_name(FileNotFoundError="missing"))
