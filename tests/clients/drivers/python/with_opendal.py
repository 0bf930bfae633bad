import asyncio

import opendal

import serve


class OpenDal:
    NOT_OFFERED = {
        "delete_some": "its Python module deletes one by one, or a folder",
        "abort": "no uploads of others", "give_up": "its Python module closes a file that is given up",
    }

    def odd_names_without(self, bucket):
        return {"names": ["a//b", "//", "folder/", " lead and trail "],
                "why": "it folds slashes, takes one at the end for a folder, and trims names"}

    def _operator(self, bucket, of=opendal.Operator):
        return of("s3", bucket=bucket, endpoint=serve.ENDPOINT, access_key_id=serve.ACCESS_KEY,
                  secret_access_key=serve.SECRET_KEY, region=serve.REGION)

    def put(self, bucket, key, file):
        return self._put(bucket, key, file)

    def put_stream(self, bucket, key, file):
        with self._operator(bucket).open(key, "wb") as target:
            for piece in serve.Pipe(file).pieces():
                target.write(piece)

    def get(self, bucket, key, to):
        serve.write(to, self._operator(bucket).read(key))

    def range(self, bucket, key, offset, length, to):
        serve.write(to, self._operator(bucket).read(key, offset=offset, size=length))

    def head(self, bucket, key):
        told = self._operator(bucket).stat(key)
        return {"size": told.content_length, "etag": told.etag}

    def list(self, bucket, prefix, page):
        return {"keys": self._listed(bucket, prefix, limit=page, recursive=True)}

    def list_folder(self, bucket, prefix):
        listed = self._listed(bucket, prefix)
        return {"keys": [path for path in listed if not path.endswith("/")],
                "folders": [path for path in listed if path.endswith("/")]}

    def _listed(self, bucket, prefix, **options):
        return [entry.path for entry in self._operator(bucket).list(prefix, **options) if entry.path != prefix]

    def copy(self, bucket, key, to):
        self._operator(bucket).copy(key, to)

    def put_if_absent(self, bucket, key, file):
        return self._put(bucket, key, file, if_not_exists=True)

    def put_if_match(self, bucket, key, file, etag):
        return self._put(bucket, key, file, if_match=etag)

    def _put(self, bucket, key, file, **options):
        told = self._operator(bucket).write(key, serve.read(file), **options)
        return {"etag": told.etag} if told and told.etag else {}

    def delete(self, bucket, key):
        self._operator(bucket).delete(key)

    def delete_many(self, bucket, keys, prefix):
        self._operator(bucket).remove_all(prefix)

    def multipart(self, bucket, key, file, part_bytes):
        return self._put(bucket, key, file, chunk=part_bytes)

    def presign_get(self, bucket, key, seconds):
        return self._presign("presign_read", bucket, key, seconds)

    def presign_put(self, bucket, key, seconds):
        return self._presign("presign_write", bucket, key, seconds)

    def _presign(self, what, bucket, key, seconds):
        async def presign():
            return await getattr(self._operator(bucket, opendal.AsyncOperator), what)(key, seconds)

        return {"url": asyncio.run(presign()).url}


serve.serve(OpenDal(), serve.kind_by_name(NotFound="missing", ConditionNotMatch="precondition"))
