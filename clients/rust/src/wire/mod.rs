//! The native API's JSON, version 1. `clients/openapi.json` is made from these types.
//!
//! Texts that the daemon has rules for, such as job ids, scopes and handles, are texts here: the daemon checks them.

mod audit;
mod cluster;
mod coordinator;
mod error;
mod job;
mod restore;
mod segment;
mod space;

pub use audit::{
    AuditPage, AuditParams, AuditedCheckpoint, AuditedObject, AuditedPart, KeptObject, KeptObjects, OrphanLine,
    OrphanObject, OrphansEnd, OrphansOfJob, OrphansParams, UnreadableMetadata,
};
pub use cluster::{ClusterMember, ClusterShard, ClusterStatus};
pub use coordinator::{
    AbortData, AckAnswer, AckRequest, AckState, AssignedStateInfo, BacklogReport, CheckpointFiguresInfo, CompleteData,
    CoordinatorInfo, DeclineRequest, EndData, EventInfo, EventPage, EventsParams, HelloData, JobEvent, JobOperator,
    JobOperatorInput, JobSettings, JobStateInfo, KeyGroups, LastTask, RequestAnswer, RestoreData, SavepointRequest,
    StateParams, StopData, StopRequest, SubsumeData, TaskName, TaskReport, TaskStateInfo, TasksAnswer, TasksReport,
    TriggerData, TriggerRequest,
};
pub use error::{ErrorBody, ErrorDetail, ErrorKind};
pub use job::{
    BeginParams, CheckpointInfo, CheckpointKind, CheckpointState, EndAnswer, EndRequest, JobEnd, JobInfo, NewJob,
    RestoreJob, RestoredJob, ReuseAnswer, ReuseRequest,
};
pub use restore::{ObjectInfo, ObjectPage, ObjectsParams, RestoreBroken, RestoreEnd, RestoreHead, RestoreRequest};
pub use segment::{BatchAnswer, BatchHead, ListParams, ListedSegment, PutParams, SegmentInfo, SegmentPage};
pub use space::{
    GcParams, GcReport, ReclaimPlan, ReclaimRound, SetAsideFile, SpaceInfo, SpaceParams, SpaceRow, VerifyInfo,
    WaitingBytes,
};

/// Header with the CRC-32C of a body, 8 hex digits.
pub const CRC_HEADER: &str = "x-esker-crc32c";
