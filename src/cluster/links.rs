//! The ways to the other members.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::map::{ClusterMap, Member};
use super::peer::PeerLink;
use crate::config::Secret;
use crate::metrics::Metrics;
use crate::runtime::Clock;
use crate::runtime::network::Network;

/// A link to each process that was ever asked for, as long as it is a member.
pub struct PeerLinks {
    me: Member,
    token: Option<Secret>,
    network: Arc<dyn Network>,
    clock: Clock,
    metrics: Metrics,
    links: Mutex<HashMap<String, Arc<PeerLink>>>,
}

crate::runtime::opaque_debug!(PeerLinks);

impl PeerLinks {
    /// Those of `me`, over `network`.
    pub fn new(me: Member, token: Option<Secret>, network: Arc<dyn Network>, clock: Clock, metrics: Metrics) -> Self {
        Self { me, token, network, clock, metrics, links: Mutex::default() }
    }

    /// The member that it is itself.
    pub fn me(&self) -> &Member {
        &self.me
    }

    /// The way to a member.
    pub fn to(&self, member: &Member) -> Arc<PeerLink> {
        let mut links = self.links.lock();
        let link = links.entry(member.incarnation.clone());
        let Self { token, network, clock, metrics, .. } = self;
        let new = || PeerLink::new(member.clone(), token.clone(), Arc::clone(network), clock.clone(), metrics.clone());
        Arc::clone(link.or_insert_with(new))
    }

    /// The ways to all members of `map` but itself and `without`. Those that are no members any more are forgotten.
    pub fn others(&self, map: &ClusterMap, without: Option<&Member>) -> Vec<Arc<PeerLink>> {
        let is_member = |incarnation: &String| map.members.iter().any(|member| member.incarnation == *incarnation);
        self.links.lock().retain(|incarnation, _| is_member(incarnation));
        let others = map.members.iter().filter(|member| member.id != self.me.id);
        let others = others.filter(|member| without.is_none_or(|without| without.incarnation != member.incarnation));
        others.map(|member| self.to(member)).collect()
    }
}
