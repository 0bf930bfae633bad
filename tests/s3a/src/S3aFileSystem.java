import java.io.ByteArrayInputStream;
import java.io.EOFException;
import java.io.FileNotFoundException;
import java.io.IOException;
import java.io.InputStream;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.TreeMap;
import java.util.concurrent.Callable;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import org.apache.hadoop.conf.Configuration;
import org.apache.hadoop.fs.Abortable;
import org.apache.hadoop.fs.BBUploadHandle;
import org.apache.hadoop.fs.BulkDelete;
import org.apache.hadoop.fs.FSDataInputStream;
import org.apache.hadoop.fs.FSDataOutputStream;
import org.apache.hadoop.fs.FSDataOutputStreamBuilder;
import org.apache.hadoop.fs.FileAlreadyExistsException;
import org.apache.hadoop.fs.FileRange;
import org.apache.hadoop.fs.FileStatus;
import org.apache.hadoop.fs.FileSystem;
import org.apache.hadoop.fs.LocatedFileStatus;
import org.apache.hadoop.fs.MultipartUploader;
import org.apache.hadoop.fs.PartHandle;
import org.apache.hadoop.fs.Path;
import org.apache.hadoop.fs.PathIsNotEmptyDirectoryException;
import org.apache.hadoop.fs.RemoteIterator;
import org.apache.hadoop.fs.UploadHandle;
import org.apache.hadoop.fs.s3a.RemoteFileChangedException;
import org.apache.hadoop.fs.s3a.S3AFileSystem;
import org.apache.hadoop.io.NullWritable;
import org.apache.hadoop.io.Text;
import org.apache.hadoop.mapreduce.Job;
import org.apache.hadoop.mapreduce.JobID;
import org.apache.hadoop.mapreduce.JobStatus;
import org.apache.hadoop.mapreduce.OutputCommitter;
import org.apache.hadoop.mapreduce.RecordWriter;
import org.apache.hadoop.mapreduce.TaskAttemptContext;
import org.apache.hadoop.mapreduce.TaskAttemptID;
import org.apache.hadoop.mapreduce.TaskType;
import org.apache.hadoop.mapreduce.lib.output.FileOutputFormat;
import org.apache.hadoop.mapreduce.lib.output.TextOutputFormat;
import org.apache.hadoop.mapreduce.task.JobContextImpl;
import org.apache.hadoop.mapreduce.task.TaskAttemptContextImpl;
import software.amazon.awssdk.services.s3.model.S3Exception;

/**
 * Uses Esker as a file system, through an unmodified S3A.
 *
 * <p>Arguments: endpoint, access key, secret key, bucket, and a second bucket that nothing else is in. Each test has a
 * folder of its own and prints one line; the exit status is 1 if one failed.
 */
public class S3aFileSystem {
    private static final int MIB = 1024 * 1024;
    private static final int TREE_FILES = 1000;
    private static final int TREE_FOLDERS = 20;

    private final Configuration configuration;
    private final S3AFileSystem fs;
    private final S3AFileSystem empty;
    private final ExecutorService pool = Executors.newFixedThreadPool(16);
    private int failed;
    private int passed;

    private interface Test {
        void run(Path folder) throws Exception;
    }

    private S3aFileSystem(String[] arguments) throws IOException {
        configuration = new Configuration();
        configuration.set("fs.s3a.endpoint", arguments[0]);
        configuration.set("fs.s3a.endpoint.region", "us-east-1");
        configuration.set("fs.s3a.path.style.access", "true");
        configuration.set("fs.s3a.connection.ssl.enabled", "false");
        configuration.set("fs.s3a.access.key", arguments[1]);
        configuration.set("fs.s3a.secret.key", arguments[2]);
        configuration.set("fs.s3a.aws.credentials.provider", "org.apache.hadoop.fs.s3a.SimpleAWSCredentialsProvider");
        configuration.set("fs.s3a.multipart.size", "5M");
        configuration.set("fs.s3a.multipart.threshold", "5M");
        configuration.set("fs.s3a.attempts.maximum", "3");
        configuration.set("fs.s3a.committer.name", "magic");
        configuration.set("mapreduce.outputcommitter.factory.scheme.s3a",
            "org.apache.hadoop.fs.s3a.commit.S3ACommitterFactory");
        fs = (S3AFileSystem) new Path("s3a://" + arguments[3] + "/").getFileSystem(configuration);
        empty = (S3AFileSystem) new Path("s3a://" + arguments[4] + "/").getFileSystem(configuration);
    }

    public static void main(String[] arguments) throws Exception {
        S3aFileSystem tests = new S3aFileSystem(arguments);
        tests.all();
        System.out.printf("%d passed, %d failed%n", tests.passed, tests.failed);
        System.exit(tests.failed == 0 ? 0 : 1);
    }

    private void all() throws Exception {
        test("a file has the bytes that were written to it", this::filesHaveTheirBytes);
        test("create replaces a file only if it may", this::createReplacesOnlyIfItMay);
        test("of many that create a file one wins", this::oneCreatorWins);
        test("a file that is aborted is not there", this::abortedFilesAreNotThere);
        test("odd names are names", this::oddNamesAreNames);
        test("folders are there when they are made or have files", this::foldersAreThere);
        test("a file is renamed", this::filesAreRenamed);
        test("a tree of 1,000 files is made, listed, renamed and deleted", this::trees);
        test("a tree is deleted in bulk", this::bulkDelete);
        for (String stream : List.of("classic", "analytics")) {
            Configuration reading = new Configuration(configuration);
            reading.set("fs.s3a.input.stream.type", stream);
            FileSystem reader = FileSystem.newInstance(fs.getUri(), reading);
            test("reads go where they are sent, " + stream, folder -> seeks(reader, folder));
            // The newer stream closes itself then, and has no word of its own for why.
            Class<? extends IOException> change =
                stream.equals("classic") ? RemoteFileChangedException.class : IOException.class;
            test("a change under a reader is noticed, " + stream, folder -> changesAreNoticed(reader, change, folder));
            test("vectored reads, " + stream, folder -> vectoredReads(reader, folder));
        }
        test("the root folder", this::root);
        test("an upload in pieces", this::uploadsInPieces);
        test("uploads that are not there cannot be aborted", this::unknownUploads);
        test("uploads below a folder are aborted", this::uploadsBelowAFolder);
        test("the magic committer shows a job's files when it commits", this::magicCommit);
        test("the magic committer leaves nothing of a job that is aborted", this::magicAbort);
        test("no upload is left", folder -> check(!fs.listUploads("").hasNext(), "there is " + fs.listUploads("")));
    }

    private void test(String name, Test test) {
        long began = System.nanoTime();
        try {
            Path folder = new Path("/" + name.replaceAll("[^a-z0-9]+", "-"));
            fs.mkdirs(folder);
            test.run(folder);
            passed++;
            System.out.printf("ok      %s (%.1f s)%n", name, (System.nanoTime() - began) / 1e9);
        } catch (Throwable error) {
            failed++;
            System.out.printf("FAILED  %s: %s%n", name, error);
            for (Throwable cause = error; cause != null; cause = cause.getCause()) {
                System.out.println("        " + cause);
            }
            Arrays.stream(error.getStackTrace()).filter(frame -> frame.getClassName().startsWith("S3aFileSystem"))
                .forEach(frame -> System.out.println("            at " + frame));
        }
        System.out.flush();
    }

    private void filesHaveTheirBytes(Path folder) throws Exception {
        for (int length : new int[] {0, 1, 1000, 5 * MIB, 17 * MIB + 5}) {
            Path file = new Path(folder, "of-" + length);
            byte[] content = content(length, length);
            write(file, content);
            expect(file, content);
            FileStatus status = fs.getFileStatus(file);
            check(status.isFile() && status.getLen() == length, "status " + status);
        }
        Path odd = new Path(folder, "in-pieces");
        byte[] content = content(12 * MIB, 3);
        try (FSDataOutputStream out = fs.create(odd)) {
            for (int at = 0, next; at < content.length; at = next) {
                next = Math.min(content.length, at + 1 + at % 70_001);
                out.write(content, at, next - at);
            }
        }
        expect(odd, content);
        check(fs.getXAttrs(odd).containsKey("header.Content-Type"), "no headers: " + fs.getXAttrs(odd).keySet());
    }

    private void createReplacesOnlyIfItMay(Path folder) throws Exception {
        Path file = new Path(folder, "file");
        write(file, content(100, 1));
        refuses(FileAlreadyExistsException.class, () -> fs.create(file, false));
        expect(file, content(100, 1));
        write(file, content(50, 2));
        expect(file, content(50, 2));
        write(file, content(11 * MIB, 3));
        expect(file, content(11 * MIB, 3));
        write(file, new byte[0]);
        expect(file, new byte[0]);
        fs.mkdirs(new Path(folder, "inner"));
        refuses(FileAlreadyExistsException.class, () -> fs.create(new Path(folder, "inner"), false));
        refuses(FileAlreadyExistsException.class, () -> fs.create(new Path(folder, "inner"), true));
        refuses(FileNotFoundException.class, () -> fs.open(new Path(folder, "not-there")));
        refuses(FileNotFoundException.class, () -> fs.open(new Path(folder, "inner")));
        refuses(FileNotFoundException.class, () -> fs.getFileStatus(new Path(folder, "not-there")));
    }

    private void oneCreatorWins(Path folder) throws Exception {
        for (int length : new int[] {100, 6 * MIB}) {
            Path file = new Path(folder, "contended-" + length);
            List<Integer> winners = new ArrayList<>();
            inParallel(8, writer -> {
                try {
                    FSDataOutputStreamBuilder<?, ?> builder = fs.createFile(file);
                    builder.must("fs.option.create.conditional.overwrite", true);
                    FSDataOutputStream out = (FSDataOutputStream) builder.build();
                    out.write(content(length, writer));
                    out.close();
                    synchronized (winners) {
                        winners.add(writer);
                    }
                } catch (FileAlreadyExistsException | RemoteFileChangedException lost) {
                    // Somebody else was first.
                } catch (IOException lost) {
                    // While two puts are under way, S3 answers 409, too, and S3A has no word of its own for it.
                    boolean isConflict = lost.getCause() instanceof S3Exception told && told.statusCode() == 409;
                    check(isConflict, "a put failed: " + lost);
                }
                return null;
            });
            check(winners.size() == 1, "winners " + winners);
            expect(file, content(length, winners.get(0)));
        }
    }

    private void abortedFilesAreNotThere(Path folder) throws Exception {
        for (int length : new int[] {10, 12 * MIB}) {
            Path file = new Path(folder, "aborted-" + length);
            FSDataOutputStream out = fs.create(file);
            out.write(content(length, 1));
            Abortable.AbortableResult result = out.abort();
            check(!result.alreadyClosed(), "was closed already");
            out.close();
            check(!fs.exists(file), "it is there");
        }
    }

    private void oddNamesAreNames(Path folder) throws Exception {
        List<String> names = List.of("a b", "a+b", "100%", "%41", "a&b=c", "<x>&amp;\"'", "\u00fcml\u00e4ut",
            "\u65e5\u672c", "q?x=1#y", "semi;co,lon", "star*[x]{y}|^`", "~$@!'()", "back\\slash");
        TreeMap<String, Integer> expected = new TreeMap<>();
        for (String name : names) {
            Path file = odd(folder, name);
            write(file, content(200, name.hashCode()));
            expect(file, content(200, name.hashCode()));
            expected.put(file.getName(), 200);
        }
        TreeMap<String, Integer> listed = new TreeMap<>();
        for (FileStatus status : fs.listStatus(folder)) {
            listed.put(status.getPath().getName(), (int) status.getLen());
        }
        check(listed.equals(expected), "listed " + listed);
        for (String name : names) {
            check(fs.rename(odd(folder, name), odd(folder, name + "-2")), "rename of " + name);
            expect(odd(folder, name + "-2"), content(200, name.hashCode()));
            check(fs.delete(odd(folder, name + "-2"), false), "delete of " + name);
        }
        check(fs.listStatus(folder).length == 0, "left " + Arrays.toString(fs.listStatus(folder)));
    }

    /** A path is a URI to Hadoop, and a backslash a slash. */
    private static Path odd(Path folder, String name) {
        return new Path(folder, new Path(null, null, name.replace("\\", "_")).toString().replace("\\", "_"));
    }

    private void foldersAreThere(Path folder) throws Exception {
        Path deep = new Path(folder, "a/b c/d");
        check(fs.mkdirs(deep), "mkdirs");
        check(fs.mkdirs(deep), "mkdirs again");
        check(fs.getFileStatus(deep).isDirectory(), "no folder");
        check(fs.getFileStatus(new Path(folder, "a/b c")).isDirectory(), "no folder between");
        check(fs.listStatus(deep).length == 0, "it has something in it");
        write(new Path(deep, "file"), content(10, 1));
        refuses(PathIsNotEmptyDirectoryException.class, () -> fs.delete(new Path(folder, "a"), false));
        refuses(FileAlreadyExistsException.class, () -> fs.mkdirs(new Path(deep, "file")));
        check(fs.delete(new Path(deep, "file"), false), "delete");
        check(fs.exists(deep), "a folder is gone with its last file");
        check(fs.delete(deep, false), "delete of an empty folder");
        check(!fs.exists(deep), "it is still there");
        check(!fs.delete(deep, true), "a second delete says that it did something");
        refuses(FileNotFoundException.class, () -> fs.listStatus(deep));
    }

    private void filesAreRenamed(Path folder) throws Exception {
        Path from = new Path(folder, "from"), to = new Path(folder, "to"), inner = new Path(folder, "inner");
        byte[] large = content(11 * MIB, 1);
        write(from, large);
        check(fs.rename(from, to), "rename");
        expect(to, large);
        check(!fs.exists(from), "the source is still there");
        fs.mkdirs(inner);
        check(fs.rename(to, inner), "rename into a folder");
        expect(new Path(inner, "to"), large);
        write(from, content(5, 5));
        write(to, content(6, 6));
        check(!renamed(from, to), "a file was replaced");
        expect(to, content(6, 6));
        expect(from, content(5, 5));
        check(!renamed(new Path(folder, "not-there"), new Path(folder, "x")), "what is not there was renamed");
        check(!renamed(folder, new Path(folder, "below")), "a folder is below itself");
        check(fs.rename(from, from), "rename to itself");
        expect(from, content(5, 5));
    }

    private boolean renamed(Path from, Path to) throws IOException {
        try {
            return fs.rename(from, to);
        } catch (FileNotFoundException | FileAlreadyExistsException refused) {
            return false;
        }
    }

    private void trees(Path folder) throws Exception {
        Path tree = new Path(folder, "tree"), moved = new Path(folder, "moved to");
        inParallel(TREE_FILES, number -> {
            write(treeFile(tree, number), content(number, number));
            return null;
        });
        expectTree(tree);
        check(fs.listStatus(tree).length == TREE_FOLDERS, "folders " + fs.listStatus(tree).length);
        check(fs.globStatus(new Path(tree, "*/f1?")).length == 10, "glob");

        check(fs.rename(tree, moved), "rename");

        check(!fs.exists(tree), "the source is still there");
        expectTree(moved);
        inParallel(TREE_FILES, number -> {
            expect(treeFile(moved, number), content(number, number));
            return null;
        });

        inParallel(TREE_FILES, number -> {
            write(treeFile(moved, number), content(number, -number));
            return null;
        });
        inParallel(TREE_FILES, number -> {
            expect(treeFile(moved, number), content(number, -number));
            return null;
        });

        check(fs.delete(moved, true), "delete");
        check(!fs.exists(moved), "it is still there");
        check(fs.listStatus(folder).length == 0, "left " + Arrays.toString(fs.listStatus(folder)));
    }

    private void expectTree(Path tree) throws IOException {
        Map<Path, Long> found = new HashMap<>();
        RemoteIterator<LocatedFileStatus> files = fs.listFiles(tree, true);
        while (files.hasNext()) {
            LocatedFileStatus file = files.next();
            found.put(file.getPath(), file.getLen());
        }
        Map<Path, Long> expected = new HashMap<>();
        for (int number = 0; number < TREE_FILES; number++) {
            expected.put(treeFile(tree, number).makeQualified(fs.getUri(), fs.getWorkingDirectory()), (long) number);
        }
        check(found.equals(expected), "listed " + found.size() + " files");
        check(fs.getContentSummary(tree).getFileCount() == TREE_FILES, "summary " + fs.getContentSummary(tree));
    }

    private static Path treeFile(Path tree, int number) {
        return new Path(tree, "folder " + number % TREE_FOLDERS + "/f" + number);
    }

    private void bulkDelete(Path folder) throws Exception {
        List<Path> files = new ArrayList<>();
        for (int number = 0; number < 50; number++) {
            files.add(new Path(folder, "a+b &<" + number + ">").makeQualified(fs.getUri(), fs.getWorkingDirectory()));
            write(files.get(number), content(10, number));
        }
        try (BulkDelete bulk = fs.createBulkDelete(folder.makeQualified(fs.getUri(), fs.getWorkingDirectory()))) {
            check(bulk.pageSize() >= 50, "pages of " + bulk.pageSize());
            check(bulk.bulkDelete(files).isEmpty(), "some were not deleted");
            check(bulk.bulkDelete(files).isEmpty(), "what is gone could not be deleted");
        }
        check(fs.listStatus(folder).length == 0, "left " + fs.listStatus(folder).length);
    }

    private void seeks(FileSystem reader, Path folder) throws Exception {
        byte[] content = content(9 * MIB + 7, 1);
        Path file = new Path(folder, "file");
        write(file, content);
        for (String policy : List.of("random", "sequential", "adaptive", "whole-file")) {
            try (FSDataInputStream in = open(reader, file, policy)) {
                Random random = new Random(5);
                for (int turn = 0; turn < 60; turn++) {
                    int at = random.nextInt(content.length);
                    int length = Math.min(content.length - at, 1 + random.nextInt(200_000));
                    byte[] got = new byte[length];
                    if (turn % 3 == 0) {
                        in.readFully(at, got);
                    } else {
                        in.seek(at);
                        in.readFully(got);
                        check(in.getPos() == at + length, "position " + in.getPos());
                    }
                    byte[] expected = Arrays.copyOfRange(content, at, at + length);
                    check(Arrays.equals(got, expected), policy + ": other bytes at " + at);
                }
                in.seek(content.length);
                check(in.read() == -1, "bytes after the end");
                refuses(EOFException.class, () -> {
                    in.seek(-1);
                    return null;
                });
                refuses(EOFException.class, () -> {
                    in.readFully(content.length - 2, new byte[3]);
                    return null;
                });
            }
        }
        Path none = new Path(folder, "empty");
        write(none, new byte[0]);
        try (FSDataInputStream in = reader.open(none)) {
            check(in.read() == -1, "an empty file has a byte");
        }
    }

    /** A reader has read ahead less than these 24 MiB. */
    private void changesAreNoticed(FileSystem reader, Class<? extends IOException> change, Path folder)
        throws Exception {
        Path file = new Path(folder, "file");
        write(file, content(24 * MIB, 1));
        try (FSDataInputStream in = open(reader, file, "random")) {
            in.readFully(0, new byte[100]);
            write(file, content(24 * MIB, 2));
            refuses(change, () -> {
                in.readFully(22 * MIB, new byte[100]);
                return null;
            });
        }
    }

    private static FSDataInputStream open(FileSystem reader, Path file, String policy) throws Exception {
        return reader.openFile(file).opt("fs.option.openfile.read.policy", policy).build().get();
    }

    private void vectoredReads(FileSystem reader, Path folder) throws Exception {
        byte[] content = content(9 * MIB, 1);
        Path file = new Path(folder, "file");
        write(file, content);
        List<long[]> wanted = List.of(new long[] {0, 100}, new long[] {150, 1000}, new long[] {5000, 1},
            new long[] {3 * MIB, 2 * MIB}, new long[] {9 * MIB - 10, 10}, new long[] {7 * MIB, 4096},
            new long[] {7 * MIB + 4096, 4096});
        try (FSDataInputStream in = reader.open(file)) {
            List<FileRange> ranges = new ArrayList<>();
            for (long[] range : wanted) {
                ranges.add(FileRange.createFileRange(range[0], (int) range[1]));
            }
            in.readVectored(ranges, ByteBuffer::allocate);
            for (FileRange range : ranges) {
                ByteBuffer got = range.getData().get(60, TimeUnit.SECONDS);
                byte[] bytes = new byte[got.remaining()];
                got.get(bytes);
                int at = (int) range.getOffset();
                byte[] expected = Arrays.copyOfRange(content, at, at + range.getLength());
                check(Arrays.equals(bytes, expected), "other bytes at " + at);
            }
            refuses(EOFException.class, () -> {
                FileRange beyond = FileRange.createFileRange(9 * MIB - 5, 10);
                in.readVectored(List.of(beyond), ByteBuffer::allocate);
                return beyond.getData().get(60, TimeUnit.SECONDS);
            });
        }
    }

    private void root(Path ignored) throws Exception {
        Path root = new Path("/");
        check(empty.getFileStatus(root).isDirectory(), "it is no folder");
        check(empty.exists(root), "it is not there");
        check(empty.mkdirs(root), "mkdirs");
        check(empty.listStatus(root).length == 0, "there is " + Arrays.toString(empty.listStatus(root)));
        check(!empty.listFiles(root, true).hasNext(), "it has files");
        refuses(IOException.class, () -> empty.create(root, true));
        for (int number = 0; number < 5; number++) {
            try (FSDataOutputStream out = empty.create(new Path("/file-" + number))) {
                out.write(content(10, number));
            }
        }
        empty.mkdirs(new Path("/folder/inner"));
        check(empty.listStatus(root).length == 6, "there is " + Arrays.toString(empty.listStatus(root)));
        check(!empty.rename(root, new Path("/elsewhere")), "the root was renamed");
        // S3A does not empty a bucket by deleting its root.
        try {
            empty.delete(root, true);
        } catch (IOException refused) {
            // That is right as well.
        }
        check(empty.listStatus(root).length == 6, "the root was deleted: " + Arrays.toString(empty.listStatus(root)));
        for (FileStatus status : empty.listStatus(root)) {
            check(empty.delete(status.getPath(), true), "delete of " + status.getPath());
        }
        check(empty.listStatus(root).length == 0, "left " + Arrays.toString(empty.listStatus(root)));
        check(empty.getFileStatus(root).isDirectory(), "it is gone");
    }

    private void uploadsInPieces(Path folder) throws Exception {
        Path file = new Path(folder, "file");
        byte[] content = content(11 * MIB, 4);
        try (MultipartUploader uploader = fs.createMultipartUploader(folder).build()) {
            UploadHandle upload = uploader.startUpload(file).get();
            Map<Integer, PartHandle> parts = new HashMap<>();
            for (int number : new int[] {3, 1, 2}) {
                int from = (number - 1) * 5 * MIB, to = Math.min(content.length, number * 5 * MIB);
                InputStream part = new ByteArrayInputStream(content, from, to - from);
                parts.put(number, uploader.putPart(upload, number, number == 3, file, part, to - from).get());
            }
            check(!fs.exists(file), "it is there before it is complete");
            uploader.complete(upload, file, parts).get();
        }
        expect(file, content);
    }

    private void unknownUploads(Path folder) throws Exception {
        Path file = new Path(folder, "file");
        try (MultipartUploader uploader = fs.createMultipartUploader(folder).build()) {
            byte[] none = "no-such-upload".getBytes(StandardCharsets.UTF_8);
            UploadHandle unknown = BBUploadHandle.from(ByteBuffer.wrap(none));
            refuses(FileNotFoundException.class, () -> uploader.abort(unknown, file).get());
            UploadHandle upload = uploader.startUpload(file).get();
            uploader.putPart(upload, 1, true, file, new ByteArrayInputStream(content(100, 1)), 100).get();
            uploader.abort(upload, file).get();
            refuses(FileNotFoundException.class, () -> uploader.abort(upload, file).get());
            InputStream late = new ByteArrayInputStream(content(100, 1));
            refuses(IOException.class, () -> uploader.putPart(upload, 2, true, file, late, 100).get());
            check(!fs.exists(file), "it is there");
        }
    }

    private void uploadsBelowAFolder(Path folder) throws Exception {
        Path one = new Path(folder, "one"), other = new Path(folder, "other");
        try (MultipartUploader uploader = fs.createMultipartUploader(folder).build()) {
            for (int number = 0; number < 5; number++) {
                uploader.startUpload(new Path(one, "file " + number)).get();
            }
            UploadHandle kept = uploader.startUpload(new Path(other, "file")).get();
            check(uploader.abortUploadsUnderPath(one).get() == 5, "other uploads were aborted");
            check(fs.listUploads(other.toUri().getPath().substring(1)).hasNext(), "the neighbour's upload was aborted");
            uploader.abort(kept, new Path(other, "file")).get();
        }
    }

    private void magicCommit(Path folder) throws Exception {
        Path output = new Path(folder, "output");
        MagicJob job = new MagicJob(output, 1);
        job.committer.setupJob(job.context);
        for (int task = 0; task < 4; task++) {
            TaskAttemptContext attempt = job.run(task, 0);
            check(job.committer(attempt).needsTaskCommit(attempt), "nothing to commit");
            job.committer(attempt).commitTask(attempt);
        }
        TaskAttemptContext given = job.run(0, 1);
        job.committer(given).abortTask(given);
        for (int task = 0; task < 4; task++) {
            check(!fs.exists(job.file(task)), "a file is there before its job commits");
        }
        job.committer.commitJob(job.context);
        check(fs.exists(new Path(output, "_SUCCESS")), "no _SUCCESS");
        check(fs.getFileStatus(new Path(output, "_SUCCESS")).getLen() > 0, "_SUCCESS of another committer");
        for (int task = 0; task < 4; task++) {
            expect(job.file(task), MagicJob.lines(task, 0).getBytes(StandardCharsets.UTF_8));
        }
        check(fs.listStatus(output).length == 5, "there is " + Arrays.toString(fs.listStatus(output)));
    }

    private void magicAbort(Path folder) throws Exception {
        Path output = new Path(folder, "output");
        MagicJob job = new MagicJob(output, 2);
        job.committer.setupJob(job.context);
        TaskAttemptContext done = job.run(0, 0), undone = job.run(1, 0);
        job.committer(done).commitTask(done);
        check(job.committer(undone).needsTaskCommit(undone), "nothing to commit");
        job.committer.abortJob(job.context, JobStatus.State.FAILED);
        check(!fs.exists(job.file(0)) && !fs.exists(job.file(1)), "a file is there");
        check(!fs.listUploads(output.toUri().getPath().substring(1)).hasNext(), "uploads are left");
    }

    /** A job of four tasks, each of which writes one file of lines. */
    private class MagicJob {
        final Path output;
        final Job job;
        final JobContextImpl context;
        final OutputCommitter committer;

        MagicJob(Path output, int number) throws Exception {
            this.output = output;
            job = Job.getInstance(configuration);
            FileOutputFormat.setOutputPath(job, output.makeQualified(fs.getUri(), fs.getWorkingDirectory()));
            // What a driver sets, and all tasks of it see.
            job.getConfiguration().set("fs.s3a.committer.uuid", "job-" + number);
            job.getConfiguration().setInt("mapreduce.job.application.attempt.id", 1);
            context = new JobContextImpl(job.getConfiguration(), new JobID("test", number));
            TaskAttemptID attempt = new TaskAttemptID("test", number, TaskType.MAP, 0, 0);
            committer = new TextOutputFormat<NullWritable, Text>().getOutputCommitter(
                new TaskAttemptContextImpl(job.getConfiguration(), attempt));
            String name = committer.getClass().getSimpleName();
            check(name.equals("MagicS3GuardCommitter"), "committer " + name);
        }

        TaskAttemptContext run(int task, int attempt) throws Exception {
            TaskAttemptID id = new TaskAttemptID("test", context.getJobID().getId(), TaskType.MAP, task, attempt);
            TaskAttemptContext running = new TaskAttemptContextImpl(new Configuration(job.getConfiguration()), id);
            // A format remembers the committer that it has made.
            OutputCommitter own = new TextOutputFormat<NullWritable, Text>().getOutputCommitter(running);
            committers.put(id, own);
            own.setupTask(running);
            TextOutputFormat<NullWritable, Text> writing = new TextOutputFormat<>() {
                @Override
                public synchronized OutputCommitter getOutputCommitter(TaskAttemptContext ignored) {
                    return own;
                }
            };
            RecordWriter<NullWritable, Text> writer = writing.getRecordWriter(running);
            for (String line : lines(task, attempt).split("\n")) {
                writer.write(NullWritable.get(), new Text(line));
            }
            writer.close(running);
            return running;
        }

        final Map<TaskAttemptID, OutputCommitter> committers = new HashMap<>();

        OutputCommitter committer(TaskAttemptContext attempt) {
            return committers.get(attempt.getTaskAttemptID());
        }

        Path file(int task) throws IOException {
            return new Path(output, String.format("part-m-%05d", task));
        }

        static String lines(int task, int attempt) {
            return ("task " + task + " attempt " + attempt + "\n").repeat(1000);
        }
    }

    private interface Numbered {
        Void run(int number) throws Exception;
    }

    private void inParallel(int count, Numbered work) throws Exception {
        List<Callable<Void>> tasks = new ArrayList<>();
        for (int number = 0; number < count; number++) {
            int of = number;
            tasks.add(() -> work.run(of));
        }
        for (Future<Void> done : pool.invokeAll(tasks)) {
            done.get();
        }
    }

    private void write(Path file, byte[] content) throws IOException {
        try (FSDataOutputStream out = fs.create(file, true)) {
            out.write(content);
        }
    }

    private void expect(Path file, byte[] content) throws IOException {
        try (FSDataInputStream in = fs.open(file)) {
            byte[] got = in.readAllBytes();
            check(Arrays.equals(got, content), file + ": " + got.length + " other bytes instead of " + content.length);
        }
    }

    private static void refuses(Class<? extends Exception> expected, Callable<?> call) throws Exception {
        Object result;
        try {
            result = call.call();
        } catch (Exception error) {
            Throwable cause = error instanceof ExecutionException ? error.getCause() : error;
            check(expected.isInstance(cause), "expected " + expected.getSimpleName() + ", there was " + cause);
            return;
        }
        throw new AssertionError("expected " + expected.getSimpleName() + ", it went through: " + result);
    }

    private static void check(boolean holds, String what) {
        if (!holds) {
            throw new AssertionError(what);
        }
    }

    private static byte[] content(int length, int seed) {
        byte[] content = new byte[length];
        new Random(seed).nextBytes(content);
        return content;
    }
}
