//! What the signer of a request may.

use std::sync::Arc;

use http::Extensions;
use s3s::auth::Credentials;
use s3s::{S3Error, S3ErrorCode, S3Request};

use super::errors::refuse;
use super::gate::SignedBy;
use crate::api::keys::{Grants, KeyRing};

/// The access key that a request is signed with, if it is.
pub(super) fn signer<'a>(credentials: Option<&'a Credentials>, extensions: &'a Extensions) -> Option<&'a str> {
    let signed_by = || extensions.get::<SignedBy>().map(|by| by.0.as_str());
    credentials.map(|credentials| credentials.access_key.as_str()).or_else(signed_by)
}

/// What the signer of a request may.
pub(super) fn grants<T>(keys: &KeyRing, request: &S3Request<T>) -> Arc<Grants> {
    keys.current().grants_of(signer(request.credentials.as_ref(), &request.extensions))
}

pub(super) fn denied() -> S3Error {
    refuse(S3ErrorCode::AccessDenied, "the access key may not do this here")
}
