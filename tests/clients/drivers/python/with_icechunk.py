import icechunk
import zarr

import serve


class Icechunk:
    NOT_OFFERED = {}

    def create(self, bucket, prefix):
        session = icechunk.Repository.create(_storage(bucket, prefix)).writable_session("main")
        zarr.group(session.store).create_array("x", shape=(10, 10), chunks=(5, 5), dtype="f4")[:] = 1
        session.commit("one")

    def read(self, bucket, prefix):
        session = icechunk.Repository.open(_storage(bucket, prefix)).readonly_session("main")
        return {"values": zarr.open_group(session.store, mode="r")["x"][:].ravel().tolist()}

    def race(self, bucket, prefix):
        repository = icechunk.Repository.open(_storage(bucket, prefix))
        first, second = (repository.writable_session("main") for _ in range(2))
        zarr.open_group(first.store, mode="r+")["x"][0, 0] = 5
        zarr.open_group(second.store, mode="r+")["x"][0, 0] = 6
        first.commit("first")
        try:
            second.commit("second")
        except icechunk.ConflictError as error:
            return {"second": type(error).__name__}
        return {"second": "went through"}


def _storage(bucket, prefix):
    return icechunk.s3_storage(
        bucket=bucket, prefix=prefix, endpoint_url=serve.ENDPOINT, access_key_id=serve.ACCESS_KEY,
        secret_access_key=serve.SECRET_KEY, region=serve.REGION, allow_http=True, force_path_style=True)


serve.serve(Icechunk(), lambda error: None)
