//! A catalog on an object store is lost, and made anew from the files.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use esker::engine::rebuild::{RebuildError, RebuildOptions, RebuildProgress, rebuild};
use object_store::ObjectStoreExt;
use object_store::path::Path;
use tokio::runtime::Handle;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use crate::crashes::put_held;
use crate::faults::{Fault, Gate, Op, data};
use crate::s3_server::S3Server;
use crate::support::{
    PREFIX, Running, SIGNED, SOON, Threads, Written, assert_exactly, assert_readable, assert_sound, bytes_of,
    eventually, put, server_and_daemon, settings,
};

const SMALL_PARTS: [(&str, &str); 2] = [("store.part-size", "5 mb"), ("catalog.poll-interval", "1 s")];

fn changed() -> Vec<(&'static str, &'static str)> {
    [&SIGNED[..], &SMALL_PARTS[..]].concat()
}

async fn write(daemon: &Running) -> Vec<Written> {
    let mut written = vec![];
    for (seed, len) in [(1, 1000), (2, 100_000), (3, (1 << 20) + 7), (4, (6 << 20) + 1)] {
        written.push(put(&daemon.client, seed, len).await.unwrap());
    }
    written
}

fn lose_catalog(server: &S3Server) {
    let keys = server.objects().keys(&format!("{PREFIX}/catalog"));
    keys.iter().for_each(|key| server.objects().remove(key));
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_in_files_reads_as_before_with_one_request_a_file() {
    let (server, daemon) = server_and_daemon(&changed()).await;
    let written = write(&daemon).await;
    daemon.kill().await;
    lose_catalog(&server);
    let files = server.objects().keys(PREFIX).iter().filter(|key| data(key)).count();
    let before = server.faults().count(|logged| logged.op == Op::Get && data(&logged.key));

    let rebuilt = rebuild(&settings(&server, &changed()), RebuildOptions::default(), &|_| {}).await.unwrap();

    assert_eq!((rebuilt.faults, rebuilt.segments), (vec![], written.len()));
    let gets = server.faults().count(|logged| logged.op == Op::Get && data(&logged.key)) - before;
    // And what is larger than a block is read for the checksums of its blocks, in windows of 4 MiB.
    assert_eq!(gets, files + 1 + 2);
    let daemon = Running::start(settings(&server, &changed())).await;
    assert_exactly(&server, &daemon, &written).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_and_their_entity_tags_come_back() {
    let (server, daemon) = server_and_daemon(&changed()).await;
    let client = daemon.s3_client("door").await;
    let mut tags = vec![];
    for (n, len) in [(1, 1000), (2, 3 << 20), (3, 6 << 20)] {
        let answer = client.put(&Path::from(format!("a/{n}")), bytes_of(n, len).into()).await.unwrap();
        tags.push((format!("a/{n}"), bytes_of(n, len), answer.e_tag));
    }
    for (key, lens) in [("a/parts", vec![5 << 20, 6 << 20, 10]), ("a/small", vec![100])] {
        let mut upload = client.put_multipart(&Path::from(key)).await.unwrap();
        let mut whole = vec![];
        for len in lens {
            whole.extend_from_slice(&bytes_of(7, len));
            upload.put_part(bytes_of(7, len).into()).await.unwrap();
        }
        tags.push((key.to_owned(), whole.into(), upload.complete().await.unwrap().e_tag));
    }
    daemon.kill().await;
    lose_catalog(&server);

    let rebuilt = rebuild(&settings(&server, &changed()), RebuildOptions::default(), &|_| {}).await.unwrap();

    assert_eq!((rebuilt.faults, rebuilt.objects), (vec![], tags.len()));
    let daemon = Running::start(settings(&server, &changed())).await;
    let client = daemon.s3_client_of("door");
    for (key, bytes, e_tag) in tags {
        let got = client.get(&Path::from(key.as_str())).await.unwrap();
        assert_eq!(got.meta.e_tag, e_tag, "{key}");
        assert!(got.bytes().await.unwrap() == bytes, "{key}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_that_is_cut_short_at_any_step_leaves_nothing_half() {
    let (server, daemon) = server_and_daemon(&changed()).await;
    let written = write(&daemon).await;
    daemon.shut_down().await.unwrap();
    let options = RebuildOptions { replace: true, ..RebuildOptions::default() };
    let steps = AtomicUsize::new(0);
    let counted = |_| {
        steps.fetch_add(1, Ordering::Relaxed);
    };
    rebuild(&settings(&server, &changed()), options, &counted).await.unwrap();

    // What is before the room is made changes nothing.
    let steps = steps.load(Ordering::Relaxed);
    for last in steps - 5..steps {
        let settings_now = settings(&server, &changed());
        let cut_short = tokio::spawn(async move {
            let step = AtomicUsize::new(0);
            let crash = |at: RebuildProgress| assert!(step.fetch_add(1, Ordering::Relaxed) < last, "a crash at {at:?}");
            rebuild(&settings_now, options, &crash).await
        });
        assert!(cut_short.await.unwrap_err().is_panic());

        // A daemon has all of the old catalog, or refuses to begin with none.
        match Running::try_start(settings(&server, &changed()), Threads::Two).await {
            Ok(daemon) => {
                assert_exactly(&server, &daemon, &written).await;
                daemon.shut_down().await.unwrap();
            }
            Err(refused) => assert!(refused.contains("esker rebuild"), "{refused}"),
        }
        rebuild(&settings(&server, &changed()), options, &|_| {}).await.unwrap();
        let daemon = Running::start(settings(&server, &changed())).await;
        assert_exactly(&server, &daemon, &written).await;
        daemon.shut_down().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_still_runs_is_shut_out_first() {
    let (server, daemon) = server_and_daemon(&changed()).await;
    let written = write(&daemon).await;
    let unasked = rebuild(&settings(&server, &changed()), RebuildOptions::default(), &|_| {}).await;
    assert!(matches!(unasked, Err(RebuildError::CatalogThere)), "{unasked:?}");
    let options = RebuildOptions { replace: true, ..RebuildOptions::default() };

    let rebuilt = rebuild(&settings(&server, &changed()), options, &|_| {}).await.unwrap();

    eventually("it has noticed", SOON, || async { daemon.lost().is_cancelled() }).await;
    put(&daemon.client, 9, 1000).await.unwrap_err();
    daemon.kill().await;
    assert!(!server.objects().keys(&rebuilt.moved_aside.unwrap()).is_empty());
    let daemon = Running::start(settings(&server, &changed())).await;
    assert_exactly(&server, &daemon, &written).await;
}

const REPLACE: RebuildOptions = RebuildOptions { replace: true, read_data: false };

/// Does something when the files have been listed.
fn once_listed<F: Future<Output = ()>>(then: impl Fn() -> F + Send + Sync) -> impl Fn(RebuildProgress) + Send + Sync {
    let runtime = Handle::current();
    move |step| {
        if matches!(step, RebuildProgress::Listed(_)) {
            tokio::task::block_in_place(|| runtime.block_on(then()));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_daemon_answers_while_its_catalog_is_rebuilt_is_in_the_new_one() {
    let (server, daemon) = server_and_daemon(&changed()).await;
    let (stop, answered) = (CancellationToken::new(), Arc::new(AtomicUsize::new(0)));
    let writers: Vec<_> = (0..3)
        .map(|writer| {
            let (client, stop, answered) = (daemon.new_client(), stop.clone(), Arc::clone(&answered));
            tokio::spawn(async move {
                let mut written = vec![];
                for seed in (writer * 1_000_000).. {
                    if stop.is_cancelled() {
                        break;
                    }
                    match put(&client, seed, 20_000).await {
                        Ok(one) => written.push(one),
                        Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                    }
                    answered.store(answered.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
                }
                written
            })
        })
        .collect();
    eventually("they write", SOON, || async { answered.load(Ordering::Relaxed) > 5 }).await;
    // In the listing there is all that was answered, and nothing is answered any more.
    let refuses = once_listed(|| async {
        put(&daemon.new_client(), 999_999_999, 1000).await.unwrap_err();
    });

    rebuild(&settings(&server, &changed()), REPLACE, &refuses).await.unwrap();

    stop.cancel();
    let mut written = vec![];
    for writer in writers {
        written.extend(writer.await.unwrap());
    }
    put(&daemon.client, 999_999_998, 1000).await.unwrap_err();
    drop(refuses);
    daemon.kill().await;
    let daemon = Running::start(settings(&server, &changed())).await;
    assert!(!written.is_empty());
    assert_readable(&daemon.client, &written).await;
    assert_sound(&server, &daemon).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_put_that_is_on_its_way_is_in_the_new_catalog_or_never_answered() {
    for fault in [Fault::Held as fn(Gate) -> Fault, Fault::AnswerHeld] {
        let (server, daemon) = server_and_daemon(&changed()).await;
        let kept = put(&daemon.client, 1, 1000).await.unwrap();
        let (gate, late) = put_held(&server, &daemon, 2, 1, fault).await;
        let late = Mutex::new((late, None));
        let arrives = once_listed(|| async {
            gate.open();
            let mut late = late.lock().await;
            let answer = (&mut late.0).await.unwrap();
            late.1 = Some(answer);
        });

        rebuild(&settings(&server, &changed()), REPLACE, &arrives).await.unwrap();

        daemon.kill().await;
        drop(arrives);
        let daemon = Running::start(settings(&server, &changed())).await;
        let written: Vec<_> = [Some(kept), late.into_inner().1.unwrap().ok()].into_iter().flatten().collect();
        assert_readable(&daemon.client, &written).await;
        assert_sound(&server, &daemon).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_is_started_during_a_rebuild_keeps_its_catalog() {
    let (server, old) = server_and_daemon(&changed()).await;
    let kept = put(&old.client, 1, 1000).await.unwrap();
    let started = Mutex::new(None);
    let starts = once_listed(|| async {
        let new = Running::start(settings(&server, &changed())).await;
        let later = put(&new.client, 2, 1000).await.unwrap();
        *started.lock().await = Some((new, later));
    });

    let refused = rebuild(&settings(&server, &changed()), REPLACE, &starts).await;

    assert!(matches!(refused, Err(RebuildError::Started)), "{refused:?}");
    drop(starts);
    let (new, later) = started.into_inner().unwrap();
    let last = put(&new.client, 3, 1000).await.unwrap();
    new.kill().await;
    old.kill().await;
    let new = Running::start(settings(&server, &changed())).await;
    assert_exactly(&server, &new, &[kept, later, last]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_shut_out_where_there_is_nothing_to_make_a_catalog_from() {
    let (server, daemon) = server_and_daemon(&changed()).await;

    let refused = rebuild(&settings(&server, &changed()), REPLACE, &|_| {}).await;

    assert!(matches!(refused, Err(RebuildError::NoFiles)), "{refused:?}");
    let written = put(&daemon.client, 1, 1000).await.unwrap();
    assert_exactly(&server, &daemon, &[written]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_told_and_kept() {
    let (server, daemon) = server_and_daemon(&changed()).await;
    let written = write(&daemon).await;
    daemon.kill().await;
    lose_catalog(&server);
    let file = crate::support::object_key(written[1].info.file.as_ref().unwrap());
    let mut bytes = server.objects().get(&file).unwrap().to_vec();
    let at = bytes.len() - 100;
    bytes[at] ^= 1;
    server.objects().set(&file, bytes.into());

    let rebuilt = rebuild(&settings(&server, &changed()), RebuildOptions::default(), &|_| {}).await.unwrap();

    assert_eq!((rebuilt.faults.len(), rebuilt.lost_and_found), (1, 1), "{:?}", rebuilt.faults);
    let daemon = Running::start(settings(&server, &changed())).await;
    let read = daemon.client.get_handle(&written[1].info.handle).await.unwrap();
    assert_eq!(read, written[1].data, "its handle names its place");
}
