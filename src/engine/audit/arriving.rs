//! Each `_metadata` that comes in through the S3 door, in the background: a checkpoint that names what is not there cannot be
//! restored, and Flink does not look.

use tokio_util::sync::CancellationToken;

use super::look::{LookedAt, NameList, Needs, Unreadable};
use crate::engine::Engine;
use crate::engine::arrivals::Arrival;
use crate::flink::MetadataError;
use crate::metrics::labels::AuditOutcome;
use crate::model::{FlinkKey, JobId, KeyLayout};

impl Engine {
    /// It is stored, and will be looked at. Returns at once.
    pub(in crate::engine) fn arrived(&self, arrival: Option<Arrival>) {
        let Some(arrival) = arrival else { return };
        if self.audits.arrivals.try_send(arrival).is_err() {
            self.metrics.audits.of(AuditOutcome::Skipped).inc();
        }
    }

    /// Looks at what comes in, one after the other, until `stop`.
    pub(in crate::engine) async fn run_audits(self, stop: CancellationToken) {
        let Some(mut inbox) = self.audits.inbox.lock().take() else { return };
        while let Some(Some(Arrival { bucket, key })) = stop.run_until_cancelled(inbox.recv()).await {
            let looking = self.look_at_arrival(&bucket, &key);
            if stop.run_until_cancelled(looking).await.is_none() {
                return;
            }
        }
    }

    async fn look_at_arrival(&self, bucket: &str, key: &str) {
        let job = KeyLayout::of(bucket, key).about.job;
        let outcome = match self.look_at_metadata(bucket, key, NameList::Counted).await {
            // Discarded before its turn came.
            Ok(None) => AuditOutcome::Skipped,
            Ok(Some(LookedAt { needs: Ok(needs), .. })) if needs.missing == 0 => AuditOutcome::Complete,
            Ok(Some(LookedAt { needs: Ok(needs), .. })) => {
                self.metrics.missing_objects.inc_by(needs.missing);
                self.warn_missing(&job, key, &needs);
                AuditOutcome::Incomplete
            }
            Ok(Some(LookedAt { needs: Err(why), .. })) if is_of_others(key, &why) => return,
            Ok(Some(LookedAt { needs: Err(why), .. })) => {
                if self.audits.warned.is_first(&job) {
                    tracing::warn!(%job, key, error = crate::error::chain(&why), "a checkpoint cannot be audited");
                }
                AuditOutcome::Unreadable
            }
            Err(error) => {
                tracing::debug!(%job, key, error = crate::error::chain(&error), "a checkpoint was not audited");
                AuditOutcome::Skipped
            }
        };
        self.metrics.audits.of(outcome).inc();
    }

    fn warn_missing(&self, job: &JobId, key: &str, needs: &Needs) {
        if !self.audits.warned.is_first(job) {
            return;
        }
        let (missing, objects) = (needs.missing, needs.objects);
        let first = needs.missing_first.first().map(|first| first.key.as_str()).unwrap_or_default();
        if needs.missing_merged > 0 {
            tracing::warn!(
                %job, key, missing, objects, first,
                "a checkpoint names objects that are not there, and cannot be restored: Flink's own file merging stores them \
                 later, or never. Set execution.checkpointing.file-merging.enabled to false in Flink's configuration"
            );
        } else if FlinkKey::of(key).is_some() {
            tracing::warn!(
                %job, key, missing, objects, first,
                "a checkpoint names objects that are not there, and cannot be restored: see esker audit"
            );
        } else {
            tracing::warn!(
                %job, key, missing, objects, first,
                "a copy of a checkpoint names objects that are not there: if they are not on their way, it cannot be restored, \
                 see esker audit"
            );
        }
    }
}

/// Whether it only has the name of one, as files of Parquet may.
pub(super) fn is_of_others(key: &str, why: &Unreadable) -> bool {
    *why == Unreadable::Metadata(MetadataError::NotMetadata) && FlinkKey::of(key).is_none()
}
