//! `[store]`, `[merging]`, `[catalog]` and `[reclaim]`: how bytes are laid down, remembered and given back.

use std::path::PathBuf;

use super::super::choices::{Boundary, DeleteDurability, DirectIo, ReclaimMode, TemporaryNames};
use super::super::url::StoreUrl;
use super::super::values::{MemorySize, Secret, Span};

section! {
    /// `[store]`: the storage behind the daemon.
    StoreConfig {
        /// `file:./dir`, `memory:` (tests), `s3://bucket/prefix`, `gs://bucket/prefix`, `az://container/prefix`,
        /// `abfss://container@account.dfs.core.windows.net/prefix` or `hdfs://host:port/folder`; default `file:./esker-data`.
        url: StoreUrl = StoreUrl::File(PathBuf::from("./esker-data")),
        /// `http(s)://host:port` of a store that speaks the protocol of S3, Google Cloud Storage or Azure Blob Storage, as
        /// `url` says; of an account on Azure with the path that it has there. Not set: the service itself.
        endpoint: Option<String> = None,
        /// Region of the bucket. Not set: `AWS_REGION`, then what the store assumes.
        region: Option<String> = None,
        /// Access key of the store. Not set: `AWS_ACCESS_KEY_ID` and the other sources of AWS clients.
        access_key: Option<String> = None,
        /// Its secret. Better given as `ESKER__STORE__SECRET_KEY` than written to a file.
        secret_key: Option<Secret> = None,
        /// Allow an endpoint without TLS on another machine, default false. One on this machine needs no permission.
        allow_http: bool = false,
        /// Time for one request to the store, default 30 s; slower ones count as failed.
        request_timeout: Span = Span::seconds(30),
        /// A failed request is repeated for this long, default 10 s. Longer rides out more and answers later.
        retry_timeout: Span = Span::seconds(10),
        /// Requests to the store at once, default 64.
        max_concurrent_requests: u32 = 64,
        /// Bytes of uploads and downloads at once, default 256 mb, inside `limits.memory`.
        max_bytes_in_flight: MemorySize = MemorySize::mib(256),
        /// Local disk: write past the page cache, default `auto`. Buffered is several times slower to sync.
        direct_io: DirectIo = DirectIo::Auto,
        /// Local disk: bytes kept back for the catalog, for deletes and for the next start; with less free, writes are
        /// refused. Not set: 2 % of the disk, 64 mb to 1 gb, at most a quarter of it. `0` keeps nothing back.
        reserve: Option<MemorySize> = None,
        /// A segment larger than this streams through in parts of this size, default 8 mb; on S3, Google
        /// Cloud Storage and Azure 5 mb to 5 gb. Larger means fewer requests and more memory per stream.
        part_size: MemorySize = MemorySize::mib(8),
        /// A store on Google Cloud Storage.
        gcs: GcsConfig = GcsConfig::default(),
        /// A store on Azure Blob Storage.
        azure: AzureConfig = AzureConfig::default(),
        /// A store on HDFS.
        hdfs: HdfsConfig = HdfsConfig::default(),
    }
}

section! {
    /// `[store.gcs]`: what only a store on Google Cloud Storage needs to know.
    GcsConfig {
        /// JSON file with the key of a service account. Not set: `GOOGLE_APPLICATION_CREDENTIALS` and the other sources of
        /// Google's clients, last the metadata server of the machine.
        service_account: Option<PathBuf> = None,
    }
}

section! {
    /// `[store.azure]`: what only a store on Azure Blob Storage needs to know.
    AzureConfig {
        /// The storage account. Not set: the one that the URL names, then `AZURE_STORAGE_ACCOUNT_NAME`.
        account: Option<String> = None,
        /// A key of the account, in Base64. Not set: `AZURE_STORAGE_ACCOUNT_KEY` and the other sources of Azure's clients, last
        /// the managed identity of the machine. Better given as `ESKER__STORE__AZURE__ACCOUNT_KEY` than written to a file.
        account_key: Option<Secret> = None,
    }
}

section! {
    /// `[store.hdfs]`: what only a store on HDFS needs to know.
    HdfsConfig {
        /// Folder with `core-site.xml` and `hdfs-site.xml`. Not set: `HADOOP_CONF_DIR`, then `HADOOP_HOME/etc/hadoop`.
        conf_dir: Option<PathBuf> = None,
        /// Hadoop's keys, each `key=value`, over those of the files in `conf_dir`: a nameservice needs no files then.
        conf: Vec<String> = Vec::new(),
        /// The user that files are written as, without Kerberos. Not set: `HADOOP_USER_NAME`, then this process' user.
        user: Option<String> = None,
        /// Files open at once, default 16, at least 4. Each holds a thread of every DataNode in its pipeline.
        max_writers: u32 = 16,
        /// Replicas of each block. Not set: the cluster's default. With 1, a lost disk loses what was answered.
        replication: Option<u32> = None,
        /// Size of a block, at least 1 mb and a multiple of 512 bytes; a physical file ends there. Not set: the cluster's.
        block_size: Option<MemorySize> = None,
        /// Time for one group to be durable, default 10 s. After that its file is given up, and the group goes into another
        /// one. Shorter leaves a broken DataNode sooner, and a slow one, too.
        write_timeout: Span = Span::seconds(10),
        /// Memory for what stands in open files, which nobody can read from a DataNode yet; part of `limits.memory`. Not set:
        /// a quarter of that. Above half of it the largest files are ended.
        open_memory: Option<MemorySize> = None,
    }
}

section! {
    /// `[merging]`: how segments are packed, beyond Flink's keys.
    MergingConfig {
        /// Who shares a file of shared state, default `subtask` as in Flink. Wider means fewer files, and more of
        /// them with bytes that die at different times.
        shared_boundary: Boundary = Boundary::Subtask,
        /// Who shares a file of exclusive state, default `task-manager` as in Flink.
        exclusive_boundary: Boundary = Boundary::TaskManager,
        /// Who shares a file on the S3 door, where keys name the job at most: `job` (default) or `daemon`.
        s3_boundary: Boundary = Boundary::Job,
        /// Object stores: a group waits for the next segment for this part of the store's recent latency, default
        /// 0.25, 0 to 1; four times as long while others are missing that were answered together, or usually come together.
        linger_fraction: f64 = 0.25,
        /// Lower bound of that wait, default 20 ms; all that a segment waits that comes alone to an idle lane.
        linger_min: Span = Span::millis(20),
        /// Upper bound of the whole wait of a group, default 200 ms.
        linger_max: Span = Span::millis(200),
        /// Object stores: a delete waits for others for this long at most, default 200 ms, to share their request. It
        /// does so while fewer are waiting than usually come together: a client that sends one after the other does not
        /// wait, but for three times behind others that came together. Keep it well below the time-out of clients.
        delete_linger: Span = Span::millis(200),
        /// Object stores: when an object is durable whose name is temporary by its engine's contract, `with-rename`
        /// (default) or `at-once`. `with-rename` answers it from memory, up to `inline-group-max`, and saves its commit and
        /// that of its delete; a crash may lose it, and its rename fails then.
        temporary_names: TemporaryNames = TemporaryNames::WithRename,
        /// Object stores: when a delete of state of Flink or Spark is durable: `ledger` (default), before it is answered in
        /// `delete-ledger`, and on storage with the next commit of anything; `commit`, on storage before it is answered; `lazy`,
        /// with the next commit of anything alone, so that a crash may bring an object back whose delete was answered.
        delete_durability: DeleteDurability = DeleteDurability::Ledger,
        /// Folder on a local disk in which such deletes are noted. Not set: `esker serve` takes `deletes` in
        /// `$STATE_DIRECTORY`; without a folder, and in a cluster, deletes are durable on storage before they are answered.
        delete_ledger: Option<PathBuf> = None,
        /// Object stores: what is answered before it is durable waits for a commit of something else for this long at most,
        /// default 1 s. Longer saves requests of an idle daemon; a crash undoes as much.
        lazy_linger: Span = Span::seconds(1),
        /// Object stores: a group up to this size goes into the catalog's record, one request instead of two; default
        /// 1 mb, which is the most, 0 is never. Within `catalog.inline-max`.
        inline_group_max: MemorySize = MemorySize::mib(1),
        /// Physical files open at once, default 256; at the bound writers wait. Each may hold a buffer or descriptor.
        max_open_files: u32 = 256,
        /// An open file without a segment for this long is closed, default 30 s.
        idle_close: Span = Span::seconds(30),
        /// Longest wait for a file of a blocking pool, or for a free place in `max-open-files`, default 10 s.
        take_deadline: Span = Span::seconds(10),
        /// Bytes handed to the store as one group, default 8 mb, at most `max-file-size`.
        group_bytes_max: MemorySize = MemorySize::mib(8),
    }
}

section! {
    /// `[catalog]`: the daemon's memory of what exists. Its buffers come on top of `limits.memory`.
    CatalogConfig {
        /// Where the catalog is kept, as in `store.url`. Not set: beside the data.
        url: Option<StoreUrl> = None,
        /// Memory for catalog blocks, default 64 mb, at least 1 mb. Without it every look-up costs requests.
        cache: MemorySize = MemorySize::mib(64),
        /// Catalog bytes in memory that are only in its log, default 64 mb, at least 8 mb; at the bound commits wait.
        /// Larger makes fewer files and a longer replay at start.
        unflushed_max: MemorySize = MemorySize::mib(64),
        /// Object stores: bytes of inline segments above which groups go into files whatever their size, default
        /// 256 mb. Larger saves requests and makes starts slower.
        inline_max: MemorySize = MemorySize::mib(256),
        /// How often the catalog looks for a successor and for work, default 60 s. Each look costs requests. An idle
        /// daemon that was shut out answers reads for so long; keep it below `reclaim.delete-grace`.
        poll_interval: Span = Span::seconds(60),
        /// A log file on local disk or HDFS is closed at this size, default 16 mb, at least 64 kb.
        log_segment_size: MemorySize = MemorySize::mib(16),
    }
}

section! {
    /// `[reclaim]`: getting dead bytes back.
    ReclaimConfig {
        /// Who re-uploads live segments: `server` (default), `advise` or `off`.
        mode: ReclaimMode = ReclaimMode::Server,
        /// Time between forgetting a file whose segments were moved away and deleting it, default 5 min: whoever holds a
        /// handle of the old place can still read it. Files that died as a whole do not wait, nor do files of S3 objects on a
        /// local disk. Longer keeps more dead bytes. It begins anew with a start, and when the machine's clock is set.
        delete_grace: Span = Span::minutes(5),
        /// Files deleted per second at most, default 500. S3 answers 503 above a few thousand.
        delete_rate: u32 = 500,
        /// Bytes copied per second at most, default 64 mb.
        copy_rate: MemorySize = MemorySize::mib(64),
        /// Local disk: give dead ranges of closed files back in place, default true. Where it is off, or the file system
        /// cannot, what lives in them is copied instead, at `copy_rate`.
        punch_holes: bool = true,
        /// How often reclaimer and deleter look for work at least, default 10 s. They ask the catalog, not the store, and act
        /// a fixed part of this after something died.
        interval: Span = Span::seconds(10),
        /// How often storage is listed for files that the catalog does not name, default 1 h; 0 is never. Costs one
        /// request per 1,000 files.
        sweep_interval: Span = Span::hours(1),
        /// For how long one daemon must have seen such a file, unnamed, before it deletes it, default 24 h; on a local disk
        /// it lies in `lost+found/` meanwhile. Time for an operator to notice a catalog that is the wrong one.
        sweep_grace: Span = Span::hours(24),
    }
}
