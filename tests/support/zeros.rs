//! Objects of any size that take no room: their files are nothing but holes, and the catalog is told directly.

use std::path::Path;

use esker::catalog::Catalog;
use esker::catalog::command::{
    Bind, Command, Condition, NewSegment, ObjectContent, Outcome, PutObject, Store, StoreFile, StoreItem,
};
use esker::model::{
    About, BLOCK_BYTES, Lane, LaneOf, Location, Millis, ObjectHead, ObjectHeaders, PhysicalFileId, Segment, SegmentCrc,
    SegmentId, StateScope, Writer, crc32c,
};

/// An object of zeros.
#[derive(Debug, Clone, Copy)]
pub struct Zeros {
    pub key: &'static str,
    pub segments: u64,
    /// Each; whole blocks.
    pub segment_bytes: u64,
    /// A divisor of `segments`.
    pub files: u64,
    /// Different for each object of a catalog.
    pub number: u64,
}

impl Zeros {
    /// Its bytes; it has some.
    #[expect(clippy::len_without_is_empty, reason = "it is never empty")]
    pub fn len(&self) -> u64 {
        self.segments * self.segment_bytes
    }

    /// Makes it an object of `bucket`, which exists, in a local store below `root`.
    pub async fn put(&self, catalog: &Catalog, root: &Path, bucket: &str) {
        let file_bytes = self.len() / self.files;
        let files: Vec<PhysicalFileId> = (0..self.files)
            .map(|n| PhysicalFileId::new(None, catalog.epoch(), (u128::from(self.number) << 64) | u128::from(n)))
            .collect();
        let begin = |file: &PhysicalFileId| {
            let path = root.join(file.as_str());
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::File::create(path).unwrap().set_len(file_bytes).unwrap();
            let lane = Lane { job: None, scope: StateScope::Shared, of: LaneOf::All };
            let file = StoreFile { id: file.clone(), lane, len: file_bytes, closes: false, upload: None };
            execute(catalog, Store { file: Some(file), items: vec![] })
        };
        futures::future::join_all(files.iter().map(begin)).await;
        execute(catalog, Store { file: None, items: vec![self.item(&files, bucket)] }).await;
        let close = |file: &PhysicalFileId| catalog.execute(Command::CloseFile(file.clone(), file_bytes));
        futures::future::try_join_all(files.iter().map(close)).await.unwrap();
    }

    fn item(&self, files: &[PhysicalFileId], bucket: &str) -> StoreItem {
        let block = crc32c(&vec![0; usize::try_from(BLOCK_BYTES).unwrap()]);
        let blocks = usize::try_from(self.segment_bytes / BLOCK_BYTES).unwrap();
        let crc = SegmentCrc { whole: 0, blocks: vec![block; blocks].into() };
        let in_a_file = self.segments / self.files;
        let segment = |n: u64| NewSegment {
            id: SegmentId((u128::from(self.number) << 64) | u128::from(n)),
            about: About {
                job: "zeros".parse().unwrap(),
                scope: StateScope::Shared,
                writer: Writer { subtask: None, task_manager: None },
                checkpoint: None,
                name: None,
            },
            location: Location::File(Segment {
                file: files[usize::try_from(n / in_a_file).unwrap()].clone(),
                offset: n % in_a_file * self.segment_bytes,
                len: self.segment_bytes,
            }),
            inline: None,
            crc: crc.clone(),
        };
        let segments: Vec<NewSegment> = (0..self.segments).map(segment).collect();
        let head = ObjectHead {
            len: self.len(),
            etag: "zeros".to_owned(),
            modified: Millis(0),
            headers: ObjectHeaders::default(),
            checksum: None,
            part_lens: vec![],
        };
        let ids = segments.iter().map(|segment| segment.id).collect();
        let content = ObjectContent::Segments { segments: ids, head, upload: None };
        let (bucket, key) = (bucket.to_owned(), self.key.to_owned());
        let put = PutObject { bucket, key, condition: Condition::None, content };
        StoreItem { segments, bind: Bind::Object(Box::new(put)) }
    }
}

async fn execute(catalog: &Catalog, store: Store) {
    match catalog.execute(Command::Store(store)).await.unwrap() {
        Outcome::Stored(token, answers) => {
            assert!(answers.iter().all(Result::is_ok), "{answers:?}");
            catalog.confirm(token);
        }
        other => panic!("{other:?}"),
    }
}
