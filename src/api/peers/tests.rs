use std::future::Future;

use super::*;
use crate::config::Config;
use crate::metrics::labels::RejectReason;

fn peers(flags: &[(&str, &str)]) -> Peers {
    let base = [("limits.head-timeout", "10 s"), ("limits.idle-timeout", "60 s"), ("limits.connections-max", "2")];
    let all = base.iter().chain([("limits.connections-reserved", "2")].iter()).chain(flags);
    let flags: Vec<_> = all.map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let limits = Config::load_with(None, [], &flags).unwrap().settings().unwrap().limits;
    let metrics = Metrics::new();
    let budgets = Budgets::new(1 << 20, 0, 0, 0, metrics.in_flight_bytes.clone());
    Peers::new(limits, metrics, &budgets)
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn read(seat: &Seat, bytes: u64) {
    seat.peer().read.fetch_add(bytes, Ordering::Relaxed);
}

fn ends(seat: &Seat) -> (bool, bool) {
    (seat.peer().close().is_cancelled(), seat.peer().cut().is_cancelled())
}

fn rejected(peers: &Peers, reason: RejectReason) -> u64 {
    peers.0.metrics.rejected.of(reason).get()
}

#[test]
fn who_sends_no_whole_head_in_time_is_cut() {
    let peers = peers(&[]);
    let (silent, begun) = (peers.admit(None), peers.admit(None));
    read(&begun, 20);

    peers.look(seconds(9));
    assert_eq!((ends(&silent), ends(&begun)), ((false, false), (false, false)));
    read(&begun, 20);
    peers.look(seconds(2));

    assert_eq!((ends(&silent), ends(&begun)), ((false, true), (false, true)), "a head that trickles is none");
    assert_eq!(rejected(&peers, RejectReason::Silent), 2);
}

#[test]
fn a_connection_is_idle_between_requests_and_not_during_one() {
    let peers = peers(&[]);
    let (one, two) = (peers.admit(None), peers.admit(None));
    let busy = one.peer().begin(false);
    drop(two.peer().begin(true));
    read(&one, 100);
    read(&two, 100);

    peers.look(seconds(1));
    peers.look(seconds(59));
    assert_eq!(ends(&two), (false, false));
    read(&two, 17); // A ping.
    peers.look(seconds(1));
    assert_eq!((ends(&one), ends(&two)), ((false, false), (true, false)), "closed, as HTTP wants");
    peers.look(seconds(11));
    assert_eq!((ends(&one), ends(&two)), ((false, false), (true, true)), "it did not go");

    drop(busy);
    read(&one, 5);
    peers.look(seconds(1));
    read(&one, 5);
    peers.look(seconds(8));
    assert_eq!(ends(&one), (false, false));
    peers.look(seconds(2));
    assert_eq!(ends(&one), (false, true), "the next head was begun and not finished");
    assert_eq!(rejected(&peers, RejectReason::Silent), 1);
}

#[test]
fn when_all_places_are_taken_the_longest_idle_gives_way() {
    let peers = peers(&[]);
    let first = peers.admit(None);
    peers.look(seconds(2));
    let second = peers.admit(None);
    peers.look(seconds(2));

    let third = peers.admit(None);
    assert_eq!((ends(&first), ends(&second)), ((false, true), (false, false)));
    assert!(!third.peer().is_reserved());
    drop(first);
    let busy = second.peer().begin(false);
    let fourth = peers.admit(None);
    assert!(fourth.peer().is_reserved(), "the third came only just now, the second is busy");
    drop((busy, second));
    assert!(!peers.admit(None).peer().is_reserved(), "a place is free again");
}

#[test]
fn reserved_places_are_always_free_for_the_next_and_held_for_moments() {
    let peers = peers(&[("limits.connections-max", "1")]);
    let only = peers.admit(None);
    let _busy = only.peer().begin(false);
    let (one, two) = (peers.admit(None), peers.admit(None));
    let _asks = one.peer().begin(false);

    let three = peers.admit(None);
    assert_eq!((ends(&one), ends(&two)), ((false, false), (false, true)), "the one that sent nothing");
    assert!(three.peer().is_reserved());
    peers.look(seconds(5));
    assert!(ends(&one).1 && ends(&three).1 && !ends(&only).1);
}

#[tokio::test]
async fn a_body_below_the_rate_is_given_up_and_one_that_nobody_asks_for_is_not() {
    let peers = peers(&[("limits.rate-min", "1 kb"), ("limits.rate-window", "10 s")]);
    let seat = peers.admit(None);
    let _busy = seat.peer().begin(false);
    let flow = || {
        let flow = Arc::new(Flow::arriving(seconds(10)));
        seat.peer().add(&flow);
        flow
    };
    let (trickles, flows, waits_for_memory) = (flow(), flow(), flow());
    for _ in 0..30 {
        trickles.asked(None);
        flows.asked(Some(1200));
        flows.asked(None);
        peers.look(seconds(1));
    }

    let given_up = |flow: Arc<Flow>| async move {
        let poll = std::future::poll_fn(|cx| flow.poll_given_up(cx));
        is_ready(poll).await
    };
    assert!(given_up(trickles).await);
    assert!(!given_up(flows).await);
    assert!(!given_up(waits_for_memory).await);
    assert_eq!(ends(&seat), (false, false), "its door answers it first");
}

#[test]
fn an_answer_that_nobody_takes_is_cut() {
    let peers = peers(&[("limits.rate-min", "1 kb"), ("limits.rate-window", "10 s")]);
    let (stalled, slow) = (peers.admit(None), peers.admit(None));
    let _busy = (stalled.peer().begin(false), slow.peer().begin(false));
    for seat in [&stalled, &slow] {
        seat.peer().write_waits.store(true, Ordering::Relaxed);
        seat.peer().written.fetch_add(1 << 20, Ordering::Relaxed);
    }
    for second in 0..30 {
        slow.peer().written.fetch_add(if second % 8 == 0 { 10 << 10 } else { 0 }, Ordering::Relaxed);
        peers.look(seconds(1));
    }

    assert_eq!((ends(&stalled), ends(&slow)), ((false, true), (false, false)));
    assert_eq!(rejected(&peers, RejectReason::SlowReader), 1);
}

async fn is_ready(future: impl Future<Output = ()>) -> bool {
    futures::FutureExt::now_or_never(future).is_some()
}
