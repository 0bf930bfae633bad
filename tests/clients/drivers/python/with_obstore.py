from datetime import timedelta

import obstore
from obstore.store import S3Store

import serve


class Obstore:
    NOT_OFFERED = {"abort": "no uploads of others"}

    def odd_names_without(self, bucket):
        return {"names": ["a//b", "//", "folder/"], "why": "its paths have no empty segments"}

    def _store(self, bucket):
        return S3Store(
            bucket, endpoint=serve.ENDPOINT, access_key_id=serve.ACCESS_KEY, secret_access_key=serve.SECRET_KEY,
            region=serve.REGION, copy_if_not_exists="multipart", client_options={"allow_http": True})

    def put(self, bucket, key, file):
        return {"etag": obstore.put(self._store(bucket), key, open(file, "rb"))["e_tag"]}

    def put_stream(self, bucket, key, file):
        return {"etag": obstore.put(self._store(bucket), key, serve.Pipe(file).pieces())["e_tag"]}

    def get(self, bucket, key, to):
        serve.write(to, bytes(obstore.get(self._store(bucket), key).bytes()))

    def range(self, bucket, key, offset, length, to):
        serve.write(to, bytes(obstore.get_range(self._store(bucket), key, start=offset, length=length)))

    def head(self, bucket, key):
        told = obstore.head(self._store(bucket), key)
        return {"size": told["size"], "etag": told["e_tag"]}

    def list(self, bucket, prefix, page):
        pages = obstore.list(self._store(bucket), prefix, chunk_size=page)
        return {"keys": [entry["path"] for page in pages for entry in page]}

    def list_folder(self, bucket, prefix):
        told = obstore.list_with_delimiter(self._store(bucket), prefix)
        return {"keys": [entry["path"] for entry in told["objects"]], "folders": list(told["common_prefixes"])}

    def copy(self, bucket, key, to):
        obstore.copy(self._store(bucket), key, to)

    def copy_if_absent(self, bucket, key, to):
        obstore.copy(self._store(bucket), key, to, overwrite=False)

    def put_if_absent(self, bucket, key, file):
        return {"etag": obstore.put(self._store(bucket), key, serve.read(file), mode="create")["e_tag"]}

    def put_if_match(self, bucket, key, file, etag):
        return {"etag": obstore.put(self._store(bucket), key, serve.read(file), mode={"e_tag": etag})["e_tag"]}

    def delete(self, bucket, key):
        obstore.delete(self._store(bucket), key)

    def delete_many(self, bucket, keys, prefix):
        obstore.delete(self._store(bucket), keys)

    def delete_some(self, bucket, keys):
        obstore.delete(self._store(bucket), keys)

    def multipart(self, bucket, key, file, part_bytes):
        put = obstore.put(self._store(bucket), key, open(file, "rb"), use_multipart=True, chunk_size=part_bytes)
        return {"etag": put["e_tag"]}

    def give_up(self, bucket, key, file):
        obstore.put(self._store(bucket), key, serve.Pipe(file, fail_after=12 * serve.MIB).pieces())

    def presign_get(self, bucket, key, seconds):
        return {"url": obstore.sign(self._store(bucket), "GET", key, timedelta(seconds=seconds))}

    def presign_put(self, bucket, key, seconds):
        return {"url": obstore.sign(self._store(bucket), "PUT", key, timedelta(seconds=seconds))}


kinds = serve.kind_by_name(NotFoundError="missing", FileNotFoundError="missing", AlreadyExistsError="precondition",
                           PreconditionError="precondition")
serve.serve(Obstore(), kinds)
