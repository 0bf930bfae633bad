package org.apache.flink.runtime.checkpoint;

import java.io.IOException;
import java.util.ArrayDeque;
import java.util.Queue;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.Executor;
import org.apache.flink.api.common.JobID;
import org.apache.flink.runtime.state.CheckpointMetadataOutputStream;
import org.apache.flink.runtime.state.CheckpointStateOutputStream;
import org.apache.flink.runtime.state.CheckpointStateToolset;
import org.apache.flink.runtime.state.CheckpointStorage;
import org.apache.flink.runtime.state.CheckpointStorageAccess;
import org.apache.flink.runtime.state.CheckpointStorageLocation;
import org.apache.flink.runtime.state.CheckpointStorageLocationReference;
import org.apache.flink.runtime.state.CheckpointStreamFactory;
import org.apache.flink.runtime.state.CompletedCheckpointStorageLocation;
import org.apache.flink.runtime.state.memory.NonPersistentMetadataCheckpointStorageLocation;

/** A storage whose work waits or fails when it is told to: the beginning of a checkpoint, its metadata, its cleaning. */
final class Storage implements CheckpointStorage {
    private static final int METADATA_BYTES_MAX = 1 << 20;

    /** What the next one to begin fails with: "io", "other", or {@code null}. */
    String failsNextBegin;
    boolean failsNextStore;
    private final VirtualTime time;
    private final Trace trace;
    private boolean nextIsBegin;
    private boolean holdsBegin;
    private boolean holdsClean;
    private final Queue<Runnable> heldBegins = new ArrayDeque<>();
    private final Queue<HeldClean> heldCleans = new ArrayDeque<>();

    Storage(VirtualTime time, Trace trace) {
        this.time = time;
        this.trace = trace;
        time.onCheckpointMade = () -> nextIsBegin = true;
    }

    /**
     * The executor for what may block. A checkpoint is made on the coordinator's thread, and the very next thing that comes
     * here is to prepare its place.
     */
    Executor executor() {
        return work -> {
            if (nextIsBegin && holdsBegin) {
                heldBegins.add(work);
            } else {
                time.execute(work);
            }
            nextIsBegin = false;
        };
    }

    void hold(String what) {
        holdsBegin |= what.equals("begin");
        holdsClean |= what.equals("clean");
    }

    void release(String what) {
        if (what.equals("begin")) {
            holdsBegin = false;
            heldBegins.forEach(time::execute);
            heldBegins.clear();
        } else {
            holdsClean = false;
            while (!heldCleans.isEmpty()) {
                heldCleans.poll().release();
            }
        }
    }

    /** Lets the oldest one that waits to be cleaned be cleaned. */
    void cleanOne() {
        if (!heldCleans.isEmpty()) {
            heldCleans.poll().release();
        }
    }

    /** Flink's cleaner, which is watched, and whose work waits when it shall. */
    CheckpointsCleaner cleaner() {
        return new WatchedCleaner();
    }

    private final class WatchedCleaner extends CheckpointsCleaner {
        private static final long serialVersionUID = 1;

        @Override
        public void cleanCheckpoint(
                Checkpoint checkpoint, boolean shouldDiscard, Runnable postCleanAction, Executor executor) {
            if (!shouldDiscard) {
                super.cleanCheckpoint(checkpoint, false, postCleanAction, executor);
                return;
            }
            trace.other("discard " + checkpoint.getCheckpointID());
            HeldClean held = new HeldClean(checkpoint);
            super.cleanCheckpoint(held, true, postCleanAction, executor);
            if (holdsClean) {
                heldCleans.add(held);
            } else {
                held.release();
            }
        }
    }

    /** A checkpoint that is discarded when it may be. */
    private static final class HeldClean implements Checkpoint {
        private final Checkpoint checkpoint;
        private final CompletableFuture<Void> released = new CompletableFuture<>();

        HeldClean(Checkpoint checkpoint) {
            this.checkpoint = checkpoint;
        }

        void release() {
            released.complete(null);
        }

        @Override
        public long getCheckpointID() {
            return checkpoint.getCheckpointID();
        }

        @Override
        public DiscardObject markAsDiscarded() {
            DiscardObject discarded = checkpoint.markAsDiscarded();
            return new DiscardObject() {
                @Override
                public void discard() throws Exception {
                    discarded.discard();
                }

                @Override
                public CompletableFuture<Void> discardAsync(Executor executor) {
                    return released.thenComposeAsync(now -> discarded.discardAsync(executor), executor);
                }
            };
        }
    }

    @Override
    public CompletedCheckpointStorageLocation resolveCheckpoint(String externalPointer) {
        throw new UnsupportedOperationException("checkpoints to restore from are put into the store");
    }

    @Override
    public CheckpointStorageAccess createCheckpointStorage(JobID jobId) {
        return new Access();
    }

    /** A place for a checkpoint that nothing fails. */
    CheckpointStorageLocation place() {
        return new Location();
    }

    private CheckpointStorageLocation begin() throws IOException {
        String failure = failsNextBegin;
        failsNextBegin = null;
        if ("io".equals(failure)) {
            throw new IOException("the storage fails, as it was told to");
        } else if (failure != null) {
            throw new IllegalStateException("something fails, as it was told to");
        }
        return new Location();
    }

    private final class Location extends NonPersistentMetadataCheckpointStorageLocation {
        Location() {
            super(METADATA_BYTES_MAX);
        }

        @Override
        public CheckpointMetadataOutputStream createMetadataOutputStream() throws IOException {
            if (failsNextStore) {
                failsNextStore = false;
                throw new IOException("the storage fails, as it was told to");
            }
            return super.createMetadataOutputStream();
        }
    }

    private final class Access implements CheckpointStorageAccess {
        @Override
        public boolean supportsHighlyAvailableStorage() {
            return false;
        }

        @Override
        public boolean hasDefaultSavepointLocation() {
            return true;
        }

        @Override
        public CompletedCheckpointStorageLocation resolveCheckpoint(String externalPointer) {
            return Storage.this.resolveCheckpoint(externalPointer);
        }

        @Override
        public void initializeBaseLocationsForCheckpoint() {}

        @Override
        public CheckpointStorageLocation initializeLocationForCheckpoint(long checkpointId) throws IOException {
            return begin();
        }

        @Override
        public CheckpointStorageLocation initializeLocationForSavepoint(long checkpointId, String location)
                throws IOException {
            return begin();
        }

        @Override
        public CheckpointStreamFactory resolveCheckpointStorageLocation(
                long checkpointId, CheckpointStorageLocationReference reference) {
            throw new UnsupportedOperationException("no task writes");
        }

        @Override
        public CheckpointStateOutputStream createTaskOwnedStateStream() {
            throw new UnsupportedOperationException("no task writes");
        }

        @Override
        public CheckpointStateToolset createTaskOwnedCheckpointStateToolset() {
            throw new UnsupportedOperationException("no task writes");
        }
    }
}
