//! Errors.

use serde::{Deserialize, Serialize};

/// Body of every error.
#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ErrorBody {
    /// The error.
    pub error: ErrorDetail,
}

/// An error of the daemon.
#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ErrorDetail {
    /// The next step for the caller: `invalid`, `not_found`, `conflict`, `precondition`, `overloaded`, `unavailable`,
    /// `corrupt`, `shutting_down` or `internal`.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub kind: ErrorKind,
    /// The field of the request that is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// A sentence that says what is wrong.
    pub message: String,
    /// Names the request, in the daemon's log, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}

/// The next step for the receiver of an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The request is wrong: fix it.
    Invalid,
    /// The named thing does not exist, or no longer.
    NotFound,
    /// The state of things does not allow it: read again, then decide.
    Conflict,
    /// A condition that the request set does not hold.
    Precondition,
    /// Too much at once: slow down, then repeat.
    Overloaded,
    /// Storage does not answer: repeat.
    Unavailable,
    /// Bytes on storage are not what was written: page someone.
    Corrupt,
    /// This daemon is going away: go to another, or wait.
    ShuttingDown,
    /// A bug of the daemon: report it.
    Internal,
    /// One that this version of the client does not know.
    #[serde(other)]
    Unknown,
}
