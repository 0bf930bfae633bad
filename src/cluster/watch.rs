//! Whether the owner of a shard is there. Any verdict may be wrong: it costs a take-over, and nothing else.

use std::sync::Arc;
use std::time::Duration;

use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use http::Method;

use super::peer::{PeerError, PeerLink};
use crate::metrics::labels::PeerCall;
use crate::runtime::Clock;

/// Between two connects that are refused by the one who is dead.
const REFUSED_AGAIN: Duration = Duration::from_millis(50);
/// Pings within a lease.
pub const PINGS: u32 = 3;

/// What is found out about a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwnerVerdict {
    /// It answers, or others reach it.
    Alive,
    /// Nobody listens where it was.
    Dead,
    /// It does not answer, nor does it to another member.
    Silent,
    /// It says itself that it is about to have the catalog.
    Opens,
    /// It says itself that it has not got the catalog, and is not about to.
    Idle,
    /// This process was itself too slow to tell.
    TooSlow,
}

/// Looks whether the one behind `link` is there, and has `shard`: pings it three times within `lease`, and asks `others` beside the last one. Any
/// answer until then, however late, shows that it is.
pub async fn judge(link: &PeerLink, shard: u32, others: &[Arc<PeerLink>], map: u64, lease: Duration) -> OwnerVerdict {
    let interval = lease / PINGS;
    let (begun, begun_at) = (Clock::instant(), link.now());
    let (mut sent, mut refused) = (0, 0);
    let mut pings = FuturesUnordered::new();
    let mut asking = std::pin::pin!(is_reached_by(others, link, map, interval).fuse());
    loop {
        if sent < PINGS {
            pings.push(link.ping(map, lease));
            sent += 1;
        }
        let due = interval * sent;
        let tick = tokio::time::sleep(due.saturating_sub(begun.elapsed()));
        let pinged = tokio::select! {
            Some(pinged) = pings.next() => pinged,
            // Beside the last ping.
            reached = &mut asking, if sent == PINGS => match reached {
                true => return OwnerVerdict::Alive,
                false => continue,
            },
            () = tick => {
                // Who was stopped itself has heard nobody.
                if begun.elapsed() > due + interval / 2 {
                    return OwnerVerdict::TooSlow;
                }
                match sent == PINGS {
                    true if link.has_answered_since(begun_at) => return OwnerVerdict::Alive,
                    true => return OwnerVerdict::Silent,
                    false => continue,
                }
            }
        };
        match pinged {
            Ok(pong) if pong.has(shard) => return OwnerVerdict::Alive,
            Ok(pong) if pong.is_opening(shard) => return OwnerVerdict::Opens,
            Ok(_) => return OwnerVerdict::Idle,
            Err(PeerError::Refused(_)) if refused == 1 => return OwnerVerdict::Dead,
            Err(PeerError::Refused(_)) => {
                refused += 1;
                tokio::time::sleep(REFUSED_AGAIN).await;
                pings.push(link.ping(map, lease));
            }
            // Another process at that address, or a proxy. It may lead elsewhere the next time.
            Err(error @ PeerError::Unexpected { .. }) => {
                tracing::warn!(
                    error = crate::error::chain(&error),
                    id = link.member().id,
                    "a member of the cluster does not answer as one: is cluster.token the same for all, and its address its own?"
                );
            }
            Err(PeerError::Unreachable { .. } | PeerError::Broken(_) | PeerError::Silent(_)) => {}
        }
    }
}

/// Whether one of the others reaches it.
async fn is_reached_by(others: &[Arc<PeerLink>], link: &PeerLink, map: u64, patience: Duration) -> bool {
    let path = format!("reach/{}", link.member().incarnation);
    let asking = others.iter().map(|other| other.call(Method::GET, &path, map, PeerCall::Reach, patience));
    let mut asked: FuturesUnordered<_> = asking.collect();
    while let Some(answer) = asked.next().await {
        if answer.is_ok_and(|words| words.as_ref() == b"yes") {
            return true;
        }
    }
    false
}
