import s3fs

import serve


class S3fs:
    NOT_OFFERED = {
        "abort": "`clear_multipart_uploads` aborts those of the whole bucket alone",
    }

    def __init__(self):
        self.fs = s3fs.S3FileSystem(
            key=serve.ACCESS_KEY, secret=serve.SECRET_KEY, endpoint_url=serve.ENDPOINT, use_listings_cache=False,
            client_kwargs={"region_name": serve.REGION}, config_kwargs={"signature_version": "s3v4"})

    def odd_names_without(self, bucket):
        return {"names": ["folder/", "//", "star*[x]{y}|^`", "q?x=1#y"],
                "why": "it drops slashes at the end of a name and expands `*` and `?`"}

    def put(self, bucket, key, file):
        self.fs.put_file(file, f"{bucket}/{key}")

    def put_stream(self, bucket, key, file):
        with self.fs.open(f"{bucket}/{key}", "wb") as target:
            for piece in serve.Pipe(file).pieces():
                target.write(piece)

    def get(self, bucket, key, to):
        self.fs.get_file(f"{bucket}/{key}", to)

    def range(self, bucket, key, offset, length, to):
        serve.write(to, self.fs.cat_file(f"{bucket}/{key}", start=offset, end=offset + length))

    def head(self, bucket, key):
        told = self.fs.info(f"{bucket}/{key}")
        return {"size": told["size"], "etag": told["ETag"]}

    def list(self, bucket, prefix, page):
        return {"keys": _keys(bucket, self.fs.find(f"{bucket}/{prefix}"))}

    def list_folder(self, bucket, prefix):
        told = self.fs.ls(f"{bucket}/{prefix}", detail=True)
        names = {kind: [entry["name"] for entry in told if entry["type"] == kind] for kind in ("file", "directory")}
        return {"keys": _keys(bucket, names["file"]), "folders": _keys(bucket, names["directory"])}

    def copy(self, bucket, key, to):
        self.fs.copy(f"{bucket}/{key}", f"{bucket}/{to}")

    def put_if_absent(self, bucket, key, file):
        self.fs.pipe_file(f"{bucket}/{key}", serve.read(file), mode="create")

    def put_if_match(self, bucket, key, file, etag):
        self.fs.pipe_file(f"{bucket}/{key}", serve.read(file), IfMatch=etag)

    def delete(self, bucket, key):
        self.fs.rm_file(f"{bucket}/{key}")

    def delete_many(self, bucket, keys, prefix):
        self.fs.rm([f"{bucket}/{key}" for key in keys])

    def delete_some(self, bucket, keys):
        self.fs.rm([f"{bucket}/{key}" for key in keys])

    def multipart(self, bucket, key, file, part_bytes):
        with self.fs.open(f"{bucket}/{key}", "wb", block_size=part_bytes) as target:
            for at in range(0, len(content := serve.read(file)), part_bytes):
                target.write(content[at:at + part_bytes])

    def give_up(self, bucket, key, file):
        target = self.fs.open(f"{bucket}/{key}", "wb", block_size=5 * serve.MIB)
        try:
            for piece in serve.Pipe(file, fail_after=12 * serve.MIB).pieces():
                target.write(piece)
        except serve.NoMoreData:
            target.discard()
            raise

    def presign_get(self, bucket, key, seconds):
        return {"url": self.fs.url(f"{bucket}/{key}", expires=seconds)}

    def presign_put(self, bucket, key, seconds):
        return {"url": self.fs.url(f"{bucket}/{key}", expires=seconds, client_method="put_object")}


def _keys(bucket, names):
    return [name.removeprefix(f"{bucket}/") for name in names]


def kind_of(error):
    if isinstance(error, FileNotFoundError):
        return "missing"
    return "precondition" if isinstance(error, FileExistsError) else serve.kind_of_botocore(error.__cause__)


serve.serve(S3fs(), kind_of)
