"""The clients: where each comes from, and how its driver is started."""

from dataclasses import dataclass, field

from .install import DRIVERS, Go, GoProgram, Maven, Npm, Pip
from .steps import STEPS
from .stories import DELTA_LAKE, ICECHUNK, RESTIC


@dataclass
class Client:
    name: str
    registry: str
    recipe: object
    # The driver's command, below the environment's folder and that of the drivers.
    command: object
    # Clients may share an environment.
    environment: str = ""
    # Whose version is told, when it is not that of the first.
    package: str = ""
    steps: dict = field(default_factory=lambda: STEPS)

    def version(self, versions):
        return versions[self.package] if self.package else next(iter(versions.values()))


def _python(name, *packages, driver=None, **more):
    script = DRIVERS / "python" / f"with_{driver or name.replace('-', '_')}.py"
    return Client(name, "PyPI", Pip(list(packages)), lambda folder: [folder / "bin" / "python", script], **more)


def _program(name):
    """The driver of a program needs Python alone."""
    return lambda folder: ["python3", DRIVERS / "python" / f"with_{name}.py", folder / "bin" / name]


def _node(folder):
    return ["node", folder / "driver.mjs"]


def _java(*arguments):
    options = ["-XX:+UseSerialGC", "-Xmx512m"]
    return lambda folder: ["java", *options, "-cp", f"{folder}/classes:{folder}/lib/*", "Driver", *arguments]


def _go(program):
    return lambda folder: [folder / "bin" / program]


AWS_GO = ["github.com/aws/aws-sdk-go-v2/service/s3", "github.com/aws/aws-sdk-go-v2/feature/s3/transfermanager",
          "github.com/aws/aws-sdk-go-v2/credentials"]
JAVA = Maven(DRIVERS / "java", "[2.59,3)", "s3")

CLIENTS = [
    _python("boto3", "boto3"),
    _python("awscli", "awscli"),
    _python("s3fs", "s3fs"),
    _python("pyarrow", "pyarrow"),
    _python("obstore", "obstore"),
    _python("opendal", "opendal"),
    _python("minio-py", "minio", driver="minio"),
    # s3torchconnector itself needs PyTorch, which sends nothing.
    _python("s3torchconnector", "s3torchconnectorclient"),
    _python("s3cmd", "s3cmd"),
    Client("AWS SDK for JavaScript", "npm", Npm(DRIVERS / "js", node_min=20), _node, "aws-sdk-js"),
    Client("AWS SDK for Go", "Go modules", Go(["aws-sdk-go-v2"], AWS_GO), _go("aws-sdk-go-v2"), "aws-sdk-go"),
    Client("minio-go", "Go modules", Go(["minio-go"], ["github.com/minio/minio-go/v7"]), _go("minio-go")),
    Client("AWS SDK for Java", "Maven", JAVA, _java(), "aws-sdk-java"),
    Client("AWS SDK for Java, CRT", "Maven", JAVA, _java("crt"), "aws-sdk-java"),
    Client("rclone", "Go modules", Go(["rclone"], ["github.com/rclone/rclone"]), _program("rclone")),
    # Lists of its versions end at 0.10.0 on some proxies, so the newest has to be told.
    Client("restic", "Go modules", GoProgram("github.com/restic/restic/cmd/restic", "v0.19.1"), _program("restic"),
           steps=RESTIC),
    _python("deltalake", "deltalake", "pyarrow", steps=DELTA_LAKE),
    _python("icechunk", "icechunk", "zarr", steps=ICECHUNK),
]
