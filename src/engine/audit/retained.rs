//! Every `_metadata` that is there, compared on demand, in pages.

use super::arriving::is_of_others;
use super::look::{LookedAt, MISSING_NAMED_MAX, NameList};
use crate::engine::arrivals::is_metadata;
use crate::engine::{Engine, EngineError, ListQuery, Listed};
use crate::model::{FlinkKey, FlinkPlace};

/// Keys that are listed at a time, and of one page at most.
const KEYS_AT_ONCE: usize = 1000;
const KEYS_OF_A_PAGE: usize = 50_000;
/// Missing objects that one page tells of by name, about: they are in memory until it is answered.
const MISSING_OF_A_PAGE: usize = 10 * MISSING_NAMED_MAX;

/// The checkpoints that are asked for.
#[derive(Debug, Clone)]
pub struct AuditQuery {
    /// Only those in this bucket.
    pub bucket: Option<String>,
    /// Only those whose keys begin so.
    pub prefix: String,
    /// Only those of this job: Flink's id, or bucket and folder.
    pub job: Option<String>,
    /// Those that come after this bucket and key.
    pub after: Option<(String, String)>,
    /// At most so many.
    pub max: usize,
    /// Whether all that they name is listed.
    pub names: NameList,
}

/// Some checkpoints.
#[derive(Debug, Clone, Default)]
pub struct RetainedPage {
    /// In the order of their buckets and keys.
    pub checkpoints: Vec<CheckpointAudit>,
    /// The bucket and key after which there may be more.
    pub next: Option<(String, String)>,
}

/// A checkpoint or savepoint that is there.
#[derive(Debug, Clone)]
pub struct CheckpointAudit {
    /// The bucket of its `_metadata`.
    pub bucket: String,
    /// The key of it.
    pub key: String,
    /// What it needs.
    pub looked: LookedAt,
}

impl CheckpointAudit {
    /// The folder of its job, or of the savepoint, or whatever it is in.
    pub fn folder(&self) -> &str {
        folder_of(&self.key)
    }

    fn missing_named(&self) -> usize {
        self.looked.needs.as_ref().map_or(0, |needs| needs.missing_first.len())
    }

    /// Whether it is in the folder of a checkpoint, where the next ones subsume it.
    pub fn is_checkpoint(&self) -> bool {
        FlinkKey::of(&self.key).is_some_and(|key| matches!(key.place, FlinkPlace::Checkpoint(_)))
    }
}

impl Engine {
    /// Compares checkpoints with the objects that are there. One that is discarded meanwhile is left out.
    ///
    /// # Errors
    /// [`EngineError::Refused`] if there is no such bucket; others if storage does not answer.
    pub async fn audit(&self, query: &AuditQuery) -> Result<RetainedPage, EngineError> {
        let mut page = RetainedPage::default();
        let (mut keys, mut missing) = (0, 0);
        for bucket in self.buckets_to_look_at(query.bucket.as_deref())? {
            let mut after = match &query.after {
                Some((last, _)) if bucket < *last => continue,
                Some((last, key)) if bucket == *last => key.clone(),
                _ => String::new(),
            };
            loop {
                let listing = ListQuery { prefix: &query.prefix, delimiter: "", after: &after, max: KEYS_AT_ONCE };
                let listed = self.list(&bucket, &listing).await?;
                for entry in &listed.entries {
                    keys += 1;
                    after = entry.name().to_owned();
                    let audit = self.audit_one(&bucket, entry, query).await?;
                    missing += audit.as_ref().map_or(0, CheckpointAudit::missing_named);
                    page.checkpoints.extend(audit);
                    if page.checkpoints.len() >= query.max || missing >= MISSING_OF_A_PAGE {
                        page.next = Some((bucket, after));
                        return Ok(page);
                    }
                }
                if !listed.truncated {
                    break;
                }
                if keys >= KEYS_OF_A_PAGE {
                    page.next = Some((bucket, after));
                    return Ok(page);
                }
            }
        }
        Ok(page)
    }

    async fn audit_one(
        &self,
        bucket: &str,
        entry: &Listed,
        query: &AuditQuery,
    ) -> Result<Option<CheckpointAudit>, EngineError> {
        let key = entry.name();
        if !is_metadata(key) || !is_of_job(bucket, folder_of(key), query.job.as_deref()) {
            return Ok(None);
        }
        let looked = self.look_at_metadata(bucket, key, query.names).await?;
        let looked = looked.filter(|looked| !looked.needs.as_ref().is_err_and(|why| is_of_others(key, why)));
        Ok(looked.map(|looked| CheckpointAudit { bucket: bucket.to_owned(), key: key.to_owned(), looked }))
    }

    /// The bucket that is asked for, or all, in order.
    pub(super) fn buckets_to_look_at(&self, asked: Option<&str>) -> Result<Vec<String>, EngineError> {
        if let Some(bucket) = asked {
            self.check_bucket(bucket)?;
            return Ok(vec![bucket.to_owned()]);
        }
        let mut buckets: Vec<String> = self.buckets()?.into_iter().map(|(name, _)| name).collect();
        buckets.sort_unstable();
        Ok(buckets)
    }
}

/// The folder of the job of a key of Flink's, or else the one that the object is in.
fn folder_of(key: &str) -> &str {
    match FlinkKey::of(key) {
        Some(flink) => flink.folder,
        None => key.rsplit_once('/').map_or("", |(folder, _)| folder),
    }
}

/// Whether a folder is that of the job that is asked for, by Flink's id or by bucket and folder.
pub(super) fn is_of_job(bucket: &str, folder: &str, asked: Option<&str>) -> bool {
    let Some(asked) = asked else { return true };
    let is_path = asked.strip_prefix(bucket).and_then(|rest| rest.strip_prefix('/')) == Some(folder);
    is_path || folder.rsplit('/').next() == Some(asked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_asked_for_by_its_id_or_by_bucket_and_folder() {
        assert!(is_of_job("b", "d/j", None));
        assert!(is_of_job("b", "d/j", Some("j")));
        assert!(is_of_job("b", "d/j", Some("b/d/j")));
        assert!(!is_of_job("b", "d/j", Some("d/j")));
        assert!(!is_of_job("b", "d/j", Some("")));
        assert_eq!(
            folder_of("d/0123456789abcdef0123456789abcdef/chk-1/_metadata"),
            "d/0123456789abcdef0123456789abcdef"
        );
        assert_eq!(folder_of("copies/before/_metadata"), "copies/before");
        assert_eq!(folder_of("_metadata"), "");
    }
}
