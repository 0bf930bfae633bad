import java.io.BufferedReader;
import java.io.FileInputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.InputStreamReader;
import java.net.URI;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CompletionException;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.locks.LockSupport;
import java.util.function.Consumer;
import software.amazon.awssdk.auth.credentials.AwsBasicCredentials;
import software.amazon.awssdk.auth.credentials.StaticCredentialsProvider;
import software.amazon.awssdk.core.async.AsyncRequestBody;
import software.amazon.awssdk.core.async.AsyncResponseTransformer;
import software.amazon.awssdk.protocols.jsoncore.JsonNode;
import software.amazon.awssdk.regions.Region;
import software.amazon.awssdk.services.s3.S3AsyncClient;
import software.amazon.awssdk.services.s3.S3Configuration;
import software.amazon.awssdk.services.s3.model.CommonPrefix;
import software.amazon.awssdk.services.s3.model.DeletedObject;
import software.amazon.awssdk.services.s3.model.ObjectIdentifier;
import software.amazon.awssdk.services.s3.model.PutObjectRequest;
import software.amazon.awssdk.services.s3.model.S3Exception;
import software.amazon.awssdk.services.s3.model.S3Object;
import software.amazon.awssdk.services.s3.presigner.S3Presigner;
import software.amazon.awssdk.transfer.s3.S3TransferManager;

/** The AWS SDK for Java, version 2: over Netty, or ("crt") over its client in C. See ../../matrix/driver.py. */
public class Driver {
    private static final int MIB = 1024 * 1024;
    private static final URI ENDPOINT = URI.create(System.getenv("MATRIX_ENDPOINT"));
    private static final StaticCredentialsProvider CREDENTIALS = StaticCredentialsProvider.create(
        AwsBasicCredentials.create(System.getenv("MATRIX_ACCESS_KEY"), System.getenv("MATRIX_SECRET_KEY")));

    private static final Duration UPLOAD_BEGINS = Duration.ofSeconds(60);

    private final boolean crt;
    private final S3AsyncClient client;
    private final S3TransferManager manager;
    private final ExecutorService feeders = Executors.newCachedThreadPool(task -> {
        Thread thread = new Thread(task);
        thread.setDaemon(true);
        return thread;
    });
    private final S3Presigner presigner = S3Presigner.builder().endpointOverride(ENDPOINT).region(Region.US_EAST_1)
        .credentialsProvider(CREDENTIALS)
        .serviceConfiguration(S3Configuration.builder().pathStyleAccessEnabled(true).build()).build();

    private Driver(boolean crt) {
        this.crt = crt;
        this.client = open(5 * MIB);
        this.manager = S3TransferManager.builder().s3Client(client).build();
    }

    private S3AsyncClient open(long partBytes) {
        return crt ? openCrt(partBytes) : openNetty(partBytes);
    }

    private static S3AsyncClient openCrt(long partBytes) {
        return S3AsyncClient.crtBuilder().endpointOverride(ENDPOINT).region(Region.US_EAST_1)
            .credentialsProvider(CREDENTIALS).forcePathStyle(true).minimumPartSizeInBytes(partBytes)
            .thresholdInBytes(partBytes).build();
    }

    private static S3AsyncClient openNetty(long partBytes) {
        return S3AsyncClient.builder().endpointOverride(ENDPOINT).region(Region.US_EAST_1)
            .credentialsProvider(CREDENTIALS).forcePathStyle(true).multipartEnabled(true)
            .multipartConfiguration(parts -> parts.minimumPartSizeInBytes(partBytes).thresholdInBytes(partBytes))
            .build();
    }

    public static void main(String[] arguments) throws IOException {
        Driver driver = new Driver(arguments.length > 0 && arguments[0].equals("crt"));
        BufferedReader lines = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line = lines.readLine(); line != null; line = lines.readLine()) {
            String answer = "=> " + driver.reply(new Question(JsonNode.parser().parse(line))) + "\n";
            System.out.write(answer.getBytes(StandardCharsets.UTF_8));
            System.out.flush();
        }
        System.exit(0);
    }

    private String reply(Question question) {
        try {
            String reason = notOffered(question.text("op"));
            return json(reason != null ? Map.of("not offered", reason) : Map.of("ok", carryOut(question)));
        } catch (Throwable thrown) {
            Throwable error = thrown;
            while (error instanceof CompletionException || error instanceof ExecutionException) {
                error = error.getCause();
            }
            error.printStackTrace();
            return json(Map.of("error", kind(error), "message", String.valueOf(error)));
        }
    }

    private String notOffered(String operation) {
        return switch (operation) {
            case "odd_names_without" -> "all";
            case "sync_up" -> "it copies objects, not trees";
            default -> null;
        };
    }

    private static String kind(Throwable error) {
        int status = error instanceof S3Exception told ? told.statusCode() : 0;
        return status == 404 ? "missing" : status == 412 ? "precondition" : "other";
    }

    private Map<String, Object> carryOut(Question q) throws Exception {
        String bucket = q.text("bucket"), key = q.text("key"), to = q.text("to");
        switch (q.text("op")) {
            case "put":
                return etag(manager.uploadFile(upload -> upload.source(q.path("file"))
                    .putObjectRequest(put -> put.bucket(bucket).key(key))).completionFuture().get().response().eTag());
            case "put_stream":
                return etag(upload(bucket, key, new Pipe(q.path("file"), Long.MAX_VALUE, () -> { })));
            case "give_up":
                return etag(upload(bucket, key, new Pipe(q.path("file"), 12 * MIB, () -> awaitUpload(bucket))));
            case "get":
                Files.deleteIfExists(Path.of(to));
                client.getObject(get -> get.bucket(bucket).key(key), Path.of(to)).get();
                return Map.of();
            case "range":
                String range = "bytes=" + q.number("offset") + "-" + (q.number("offset") + q.number("length") - 1);
                Files.write(Path.of(to), client.getObject(get -> get.bucket(bucket).key(key).range(range),
                    AsyncResponseTransformer.toBytes()).get().asByteArray());
                return Map.of();
            case "head":
                var head = client.headObject(asked -> asked.bucket(bucket).key(key)).get();
                return Map.of("size", head.contentLength(), "etag", head.eTag());
            case "list":
                List<String> listed = new ArrayList<>();
                client.listObjectsV2Paginator(list -> list.bucket(bucket).prefix(q.text("prefix"))
                    .maxKeys((int) q.number("page"))).contents().subscribe(entry -> listed.add(entry.key())).get();
                return Map.of("keys", listed);
            case "list_folder":
                var page = client.listObjectsV2(list -> list.bucket(bucket).prefix(q.text("prefix")).delimiter("/"))
                    .get();
                return Map.of("keys", page.contents().stream().map(S3Object::key).toList(),
                    "folders", page.commonPrefixes().stream().map(CommonPrefix::prefix).toList());
            case "copy":
                manager.copy(copy -> copy.copyObjectRequest(request -> request.sourceBucket(bucket).sourceKey(key)
                    .destinationBucket(bucket).destinationKey(to))).completionFuture().get();
                return Map.of();
            case "copy_if_absent":
                client.copyObject(request -> request.sourceBucket(bucket).sourceKey(key)
                    .destinationBucket(bucket).destinationKey(to).ifNoneMatch("*")).get();
                return Map.of();
            case "put_if_absent":
                return put(q, request -> request.ifNoneMatch("*"));
            case "put_if_match":
                return put(q, request -> request.ifMatch(q.text("etag")));
            case "delete":
                client.deleteObject(request -> request.bucket(bucket).key(key)).get();
                return Map.of();
            case "delete_many", "delete_some":
                return delete(bucket, q.texts("keys"));
            case "multipart":
                try (S3AsyncClient inParts = open(q.number("part_bytes"))) {
                    return etag(inParts.putObject(put -> put.bucket(bucket).key(key), q.path("file")).get().eTag());
                }
            case "abort":
                return abort(bucket, key, q.text("upload"));
            case "presign_get":
                return Map.of("url", presigner.presignGetObject(presign -> presign.signatureDuration(q.lasting())
                    .getObjectRequest(get -> get.bucket(bucket).key(key))).url().toString());
            case "presign_put":
                return Map.of("url", presigner.presignPutObject(presign -> presign.signatureDuration(q.lasting())
                    .putObjectRequest(put -> put.bucket(bucket).key(key))).url().toString());
            default:
                throw new IllegalArgumentException(q.text("op"));
        }
    }

    private Map<String, Object> put(Question q, Consumer<PutObjectRequest.Builder> condition) throws Exception {
        PutObjectRequest.Builder request = PutObjectRequest.builder().bucket(q.text("bucket")).key(q.text("key"));
        condition.accept(request);
        AsyncRequestBody body = AsyncRequestBody.fromBytes(Files.readAllBytes(q.path("file")));
        return etag(client.putObject(request.build(), body).get().eTag());
    }

    /** Uploads a stream whose length nobody knows. */
    private String upload(String bucket, String key, InputStream source) throws Exception {
        AsyncRequestBody body = AsyncRequestBody.fromInputStream(
            stream -> stream.inputStream(source).contentLength(null).executor(feeders).maxReadLimit(MIB));
        return client.putObject(request -> request.bucket(bucket).key(key), body).get().eTag();
    }

    /**
     * Waits until an upload has begun. A source that fails before that has the SDK forget the answer that is on its
     * way, and with it the name of the upload that it would have to abort.
     */
    private static void awaitUpload(String bucket) {
        // Not the client that uploads: CRT's asks for nothing else while it waits for bytes of the source.
        try (S3AsyncClient other = openNetty(5 * MIB)) {
            long deadline = System.nanoTime() + UPLOAD_BEGINS.toNanos();
            while (other.listMultipartUploads(list -> list.bucket(bucket)).join().uploads().isEmpty()) {
                if (System.nanoTime() > deadline) {
                    throw new IllegalStateException("the upload has not begun within " + UPLOAD_BEGINS);
                }
                LockSupport.parkNanos(Duration.ofMillis(50).toNanos());
            }
        }
    }

    private Map<String, Object> delete(String bucket, List<String> keys) throws Exception {
        List<ObjectIdentifier> objects = keys.stream().map(key -> ObjectIdentifier.builder().key(key).build()).toList();
        var told = client.deleteObjects(request -> request.bucket(bucket).delete(what -> what.objects(objects))).get();
        List<String> deleted = told.deleted().stream().map(DeletedObject::key).toList();
        boolean all = deleted.size() == keys.size() && new HashSet<>(deleted).equals(new HashSet<>(keys));
        if (!told.errors().isEmpty() || !all) {
            throw new IllegalStateException(told.errors() + " " + deleted);
        }
        return Map.of();
    }

    private Map<String, Object> abort(String bucket, String key, String upload) throws Exception {
        var uploads = client.listMultipartUploads(list -> list.bucket(bucket)).get().uploads();
        if (uploads.size() != 1 || !uploads.get(0).key().equals(key) || !uploads.get(0).uploadId().equals(upload)) {
            throw new IllegalStateException(String.valueOf(uploads));
        }
        client.abortMultipartUpload(request -> request.bucket(bucket).key(key).uploadId(upload)).get();
        return Map.of();
    }

    private static Map<String, Object> etag(String etag) {
        Map<String, Object> told = new LinkedHashMap<>();
        if (etag != null) {
            told.put("etag", etag);
        }
        return told;
    }

    private static String json(Object value) {
        if (value instanceof Map<?, ?> map) {
            List<String> fields = map.entrySet().stream()
                .map(field -> json(field.getKey()) + ": " + json(field.getValue())).toList();
            return "{" + String.join(", ", fields) + "}";
        }
        if (value instanceof List<?> list) {
            return "[" + String.join(", ", list.stream().map(Driver::json).toList()) + "]";
        }
        return value instanceof Number ? value.toString() : quoted((String) value);
    }

    private static String quoted(String text) {
        StringBuilder out = new StringBuilder("\"");
        for (char c : text.toCharArray()) {
            boolean plain = c >= ' ' && c <= '~' && c != '"' && c != '\\';
            out.append(plain ? String.valueOf(c) : String.format("\\u%04x", (int) c));
        }
        return out.append('"').toString();
    }

    private record Question(JsonNode fields) {
        String text(String name) {
            return fields.field(name).map(JsonNode::asString).orElse(null);
        }

        long number(String name) {
            return Long.parseLong(fields.field(name).orElseThrow().asNumber());
        }

        List<String> texts(String name) {
            return fields.field(name).orElseThrow().asArray().stream().map(JsonNode::asString).toList();
        }

        Path path(String name) {
            return Path.of(text(name));
        }

        Duration lasting() {
            return Duration.ofSeconds(number("seconds"));
        }
    }

    /** A source of unknown length that cannot be read twice, and fails after so many bytes and some other thing. */
    private static class Pipe extends InputStream {
        private final InputStream file;
        private final Runnable beforeFailing;
        private long left;

        Pipe(Path path, long failAfter, Runnable beforeFailing) throws IOException {
            this.file = new FileInputStream(path.toFile());
            this.left = failAfter;
            this.beforeFailing = beforeFailing;
        }

        @Override
        public int read() throws IOException {
            byte[] one = new byte[1];
            return read(one, 0, 1) < 0 ? -1 : one[0] & 0xff;
        }

        @Override
        public int read(byte[] into, int offset, int length) throws IOException {
            if (left <= 0) {
                beforeFailing.run();
                throw new IOException("the source failed");
            }
            int read = file.read(into, offset, (int) Math.min(Math.min(length, 64 * 1024), left));
            left -= Math.max(read, 0);
            return read;
        }

        @Override
        public boolean markSupported() {
            return false;
        }
    }
}
