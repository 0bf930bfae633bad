//! The settings with which the catalog's journal is opened: by a start, a repair and a rebuild.

use crate::catalog::slate::{CompanyWait, JournalSettings};
use crate::config::CatalogSettings;
use crate::store::Placement;

/// Smaller ones would make too many files, however little a disk keeps back.
const LOG_SEGMENT_BYTES_MIN: u64 = 64 << 10;
const L0_BYTES_MIN: u64 = 1 << 20;

/// The journal's settings for where it lives.
pub(super) fn journal_settings(placement: &Placement, settings: &CatalogSettings) -> JournalSettings {
    let mut log_segment_bytes = settings.log_segment_bytes;
    let base = match placement.disk() {
        Some(space) => {
            // What the catalog writes on a full disk must fit into what is kept back for it.
            let reserve = space.catalog_reserve().filter(|bytes| *bytes > 0).unwrap_or(u64::MAX);
            log_segment_bytes = log_segment_bytes.min((reserve / 16).max(LOG_SEGMENT_BYTES_MIN));
            let base = JournalSettings::local();
            JournalSettings { l0_bytes: base.l0_bytes.min((reserve / 8).max(L0_BYTES_MIN)), ..base }
        }
        None => {
            let (deletes, lazy) = (settings.delete_linger, settings.lazy_linger);
            let company_wait = CompanyWait { deletes, lazy, ..CompanyWait::default() };
            let base = JournalSettings::default();
            let l0_bytes = base.l0_bytes.min(settings.table_bytes_max.unwrap_or(u64::MAX));
            JournalSettings { poll_interval: settings.poll_interval, company_wait, l0_bytes, ..base }
        }
    };
    JournalSettings {
        block_cache_bytes: settings.cache_bytes,
        unflushed_bytes_max: settings.unflushed_bytes_max.max(2 * base.l0_bytes),
        log_segment_bytes,
        ..base
    }
}
