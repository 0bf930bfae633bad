//! What every store has to do, asked of each: memory, a local disk, S3, Google Cloud Storage, Azure, an HDFS where
//! `ESKER_HDFS_URL` names one, and Azurite where `ESKER_AZURITE` does.
//!
//! S3, Google Cloud Storage and Azure are servers of these tests ([`s3_server`], [`gcs`], [`azure`]). `tests/stores/run` starts
//! Azurite, which others have made.
//!
//! Where stores differ, their [`Capabilities`](esker::store::Capabilities) say so, and what these say is tried.

#![allow(clippy::clone_on_ref_ptr, clippy::disallowed_methods, clippy::unwrap_used, missing_docs, unreachable_pub)]

mod azure;
mod daemons;
#[path = "../faults/faults.rs"]
#[allow(dead_code)]
mod faults;
mod gcs;
mod place;
#[path = "../faults/s3_server.rs"]
#[allow(dead_code)]
mod s3_server;
mod service;
mod transfer;

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use esker::model::PhysicalFileId;
use esker::store::{DataStore, FileWrites, GrowingFile, Placement, StoreError, StoreOwner};
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt, PutMode, PutOptions};
use place::{Place, places};

fn id(number: u128) -> PhysicalFileId {
    PhysicalFileId::new(Some(&"a job: ü/1".parse().unwrap()), 1, number)
}

fn bytes(len: usize, seed: u8) -> Bytes {
    (0..len).map(|at| (at as u8).wrapping_mul(31).wrapping_add(seed)).collect::<Vec<u8>>().into()
}

/// Writes a file in three groups; whole where files do not grow.
async fn write(store: &DataStore, file: &PhysicalFileId, parts: &[Bytes]) -> Option<Box<dyn GrowingFile>> {
    match store.writes() {
        FileWrites::Growing(files) => {
            let mut growing = files.create(file).await.unwrap();
            for part in parts {
                growing.append(vec![part.clone()]).await.unwrap();
            }
            Some(growing)
        }
        FileWrites::Whole(files) => {
            files.put(file, parts.to_vec()).await.unwrap();
            None
        }
    }
}

fn in_range(whole: &[u8], from: u64, to: u64) -> &[u8] {
    &whole[usize::try_from(from).unwrap()..usize::try_from(to).unwrap()]
}

#[tokio::test]
async fn what_was_written_is_read_in_every_range_while_the_file_grows_and_afterwards() {
    for place in places().await {
        let (name, store) = (place.name, place.open().await.data);
        let parts = [bytes(1000, 1), bytes(200_000, 2), bytes(1, 3)];
        let whole = parts.concat();
        let len = whole.len() as u64;

        let growing = write(&store, &id(1), &parts).await;
        for (from, to) in [(0, len), (0, 1), (999, 1001), (1000, 201_000), (len - 1, len), (500, 200_500)] {
            assert_eq!(store.read(&id(1), from..to).await.unwrap(), in_range(&whole, from, to), "{name}, {from}..{to}");
        }
        if let Some(mut growing) = growing {
            growing.close().await.unwrap();
        }

        assert_eq!(store.read(&id(1), 0..len).await.unwrap(), whole, "{name}");
        assert_eq!(store.len(&id(1)).await.unwrap(), Some(len), "{name}");
        let beyond = store.read(&id(1), 0..len + 1).await;
        assert!(matches!(beyond, Err(StoreError::Short { .. } | StoreError::Failed { .. })), "{name}: {beyond:?}");
        let missing = store.read(&id(2), 0..1).await;
        assert!(matches!(missing, Err(StoreError::NotFound(_))), "{name}: {missing:?}");
        assert_eq!(store.len(&id(2)).await.unwrap(), None, "{name}");
    }
}

#[tokio::test]
async fn a_file_of_many_parts_and_more_than_a_block_is_read_back() {
    for place in places().await {
        let (name, store) = (place.name, place.open().await.data);
        let FileWrites::Growing(files) = store.writes() else { continue };
        let parts: Vec<Bytes> = (0..7).map(|number| bytes(3 << 20, number)).collect();

        for (number, readable) in [(1, true), (2, false)] {
            let mut growing = match readable {
                true => files.create(&id(number)).await.unwrap(),
                false => files.create_unread(&id(number)).await.unwrap(),
            };
            for part in &parts {
                growing.append_unsynced(vec![part.slice(..1), part.slice(1..)]).await.unwrap();
            }
            growing.append(vec![]).await.unwrap();
            growing.close().await.unwrap();
            let len = 21 << 20;
            assert_eq!(store.read(&id(number), 0..len).await.unwrap(), parts.concat(), "{name}");
        }
    }
}

#[tokio::test]
async fn what_is_durable_is_there_for_whoever_opens_the_store_next() {
    for place in places().await.into_iter().filter(|place| place.lasts) {
        let (name, store) = (place.name, place.open().await.data);
        let parts = [bytes(10, 1), bytes(5000, 2)];
        let growing = write(&store, &id(1), &parts).await;

        let next = place.open().await.data;
        if next.capabilities().leases {
            assert_eq!(next.release(&id(1)).await.unwrap(), Some(5010), "{name}");
            assert_eq!(next.release(&id(1)).await.unwrap(), Some(5010), "{name}, once more");
            assert_eq!(next.release(&id(2)).await.unwrap(), None, "{name}");
            let mut stale = growing.unwrap();
            assert!(stale.append(vec![bytes(1, 1)]).await.is_err(), "{name}: it was shut out");
            assert!(!stale.is_usable(), "{name}");
            assert_eq!(next.len(&id(1)).await.unwrap(), Some(5010), "{name}");
        }

        assert_eq!(next.read(&id(1), 0..5010).await.unwrap(), parts.concat(), "{name}");
        if next.capabilities().appends {
            let sealed = next.seal(&id(1), 10..5010, 5010, bytes(7, 9)).await.unwrap();
            assert_eq!(sealed, 5017, "{name}");
            assert_eq!(next.read(&id(1), 5000..5017).await.unwrap()[10..], bytes(7, 9), "{name}");
        }
    }
}

#[tokio::test]
async fn a_name_is_given_once() {
    for place in places().await {
        let (name, store) = (place.name, place.open().await.data);
        let first = write(&store, &id(1), &[bytes(10, 1)]).await;

        let again = match store.writes() {
            FileWrites::Growing(files) => files.create(&id(1)).await.map(|_| ()),
            FileWrites::Whole(files) => files.put(&id(1), vec![bytes(11, 2)]).await,
        };

        assert!(again.is_err(), "{name}");
        assert_eq!(store.read(&id(1), 0..10).await.unwrap(), bytes(10, 1), "{name}");
        drop(first);
    }
}

#[tokio::test]
async fn the_list_has_every_file_and_what_is_deleted_is_gone() {
    for place in places().await {
        let (name, store) = (place.name, place.open().await.data);
        assert_eq!(store.list().await.unwrap(), [], "{name}");
        let jobs = ["plain", "with space", "ü/ö", "a:b", "100%", ".hidden", "dot."];
        let ids = jobs.iter().map(|job| PhysicalFileId::new(Some(&job.parse().unwrap()), 1, 7));
        let ids: Vec<PhysicalFileId> = ids.chain([PhysicalFileId::new(None, 1, 8)]).collect();
        for file in &ids {
            if let Some(mut growing) = write(&store, file, &[bytes(10, 1)]).await {
                growing.close().await.unwrap();
            }
        }

        let mut expected: Vec<(String, u64)> = ids.iter().map(|file| (file.to_string(), 10)).collect();
        expected.sort();
        assert_eq!(store.list().await.unwrap(), expected, "{name}");
        let mut wanted = ids[..4].to_vec();
        wanted.push(id(99));
        let gone: BTreeSet<PhysicalFileId> = store.delete(wanted.clone()).await.into_iter().collect();
        assert_eq!(gone, wanted.into_iter().collect(), "{name}: what was not there is gone, too");
        let left: BTreeSet<String> = store.list().await.unwrap().into_iter().map(|(file, _)| file).collect();
        assert_eq!(left, ids[4..].iter().map(ToString::to_string).collect(), "{name}");
    }
}

#[tokio::test]
async fn a_file_that_is_set_aside_comes_back_as_it_was() {
    for place in places().await {
        let (name, store) = (place.name, place.open().await.data);
        if !store.capabilities().sets_aside {
            continue;
        }
        // As a daemon leaves it that was killed.
        drop(write(&store, &id(1), &[bytes(10, 1)]).await);
        let next = place.open().await.data;

        next.set_aside(id(1).as_str()).await.unwrap();
        assert_eq!(next.list().await.unwrap(), [], "{name}");
        let listed: Vec<String> = next.set_aside_files().await.unwrap().into_iter().map(|(file, _)| file).collect();
        assert_eq!(listed, [id(1).as_str()], "{name}");
        next.bring_back(&id(1)).await.unwrap();
        if next.capabilities().leases {
            next.release(&id(1)).await.unwrap();
        }
        assert_eq!(next.read(&id(1), 0..10).await.unwrap(), bytes(10, 1), "{name}");
        next.set_aside(id(1).as_str()).await.unwrap();
        next.delete_set_aside(&id(1)).await.unwrap();
        assert_eq!(next.set_aside_files().await.unwrap(), [], "{name}");
    }
}

#[tokio::test]
async fn a_name_that_is_claimed_is_not_given_to_whoever_comes_late() {
    for place in places().await {
        let (name, store) = (place.name, place.open().await.data);
        if store.capabilities().exclusive {
            continue;
        }
        assert_eq!(store.claim(&id(1)).await.unwrap(), None, "{name}");

        let late = match store.writes() {
            FileWrites::Growing(files) => files.create(&id(1)).await.map(|_| ()),
            FileWrites::Whole(files) => files.put(&id(1), vec![bytes(10, 1)]).await,
        };

        assert!(late.is_err(), "{name}");
        assert_eq!(store.claim(&id(1)).await.unwrap(), None, "{name}, once more");
        drop(write(&store, &id(2), &[bytes(10, 1)]).await);
        let next = if place.lasts { place.open().await.data } else { store };
        assert_eq!(next.claim(&id(2)).await.unwrap(), Some(10), "{name}");
    }
}

/// The object store that the catalog is on; none on a disk, where it is files.
async fn objects(place: &Place) -> Option<(Arc<dyn ObjectStore>, Path)> {
    match place.open().await.catalog {
        Placement::Object { store, prefix, .. } => Some((store, prefix)),
        Placement::Local { .. } => None,
    }
}

fn create() -> PutOptions {
    PutOptions::from(PutMode::Create)
}

#[tokio::test]
async fn of_racing_creators_of_an_object_one_wins_and_nothing_stays_of_the_others() {
    for place in places().await {
        let Some((store, prefix)) = objects(&place).await else { continue };
        for number in 0..10 {
            let key = prefix.clone().join(format!("race-{number}"));
            let racing = (0..20u8).map(|racer| {
                let (store, key) = (store.clone(), key.clone());
                async move { (racer, store.put_opts(&key, bytes(100, racer).into(), create()).await) }
            });
            let ended: Vec<_> = futures::stream::iter(racing).buffer_unordered(20).collect().await;
            let won: Vec<u8> = ended.iter().filter(|(_, put)| put.is_ok()).map(|(racer, _)| *racer).collect();
            assert_eq!(won.len(), 1, "{}", place.name);
            for (_, put) in ended {
                let taken = put.err().is_none_or(|error| matches!(error, Error::AlreadyExists { .. }));
                assert!(taken, "{}", place.name);
            }
            let read = store.get(&key).await.unwrap().bytes().await.unwrap();
            assert_eq!(read, bytes(100, won[0]), "{}", place.name);
        }
        let listed: Vec<_> = store.list(Some(&prefix)).try_collect().await.unwrap();
        assert_eq!(listed.len(), 10, "{}", place.name);
        let everything: Vec<_> = store.list_with_delimiter(Some(&prefix)).await.unwrap().objects;
        assert_eq!(everything.len(), 10, "{}", place.name);
    }
}

#[tokio::test]
async fn objects_are_read_in_ranges_listed_replaced_and_deleted() {
    for place in places().await {
        let (name, Some((store, prefix))) = (place.name, objects(&place).await) else { continue };
        let at = |key: &str| key.split('/').fold(prefix.clone(), |path, part| path.join(part));
        let missing = at("missing");
        assert!(matches!(store.get(&missing).await, Err(Error::NotFound { .. })), "{name}");
        assert!(matches!(store.head(&missing).await, Err(Error::NotFound { .. })), "{name}");
        let keys = ["a", "b/1", "b/2", "b/c/3", "odd name+%&ü"];
        for key in keys {
            store.put(&at(key), bytes(1000, 1).into()).await.unwrap();
        }
        store.put(&at("empty"), Bytes::new().into()).await.unwrap();

        assert_eq!(store.get_range(&at("a"), 10..20).await.unwrap(), bytes(1000, 1)[10..20], "{name}");
        assert_eq!(store.get_range(&at("a"), 990..2000).await.unwrap(), bytes(1000, 1)[990..], "{name}");
        assert!(store.get_range(&at("a"), 1000..1001).await.is_err(), "{name}");
        assert_eq!(store.head(&at("a")).await.unwrap().size, 1000, "{name}");
        assert_eq!(store.get(&at("empty")).await.unwrap().bytes().await.unwrap().len(), 0, "{name}");
        let listed: Vec<_> = store.list(Some(&prefix)).try_collect().await.unwrap();
        let listed: BTreeSet<Path> = listed.into_iter().map(|meta| meta.location).collect();
        assert_eq!(listed, keys.iter().map(|key| at(key)).chain([at("empty")]).collect(), "{name}");
        let below = store.list_with_delimiter(Some(&at("b"))).await.unwrap();
        assert_eq!((below.objects.len(), below.common_prefixes), (2, vec![at("b/c")]), "{name}");
        let after: Vec<_> = store.list_with_offset(Some(&at("b")), &at("b/1")).try_collect().await.unwrap();
        assert_eq!(after.len(), 2, "{name}");
        assert_eq!(store.list(Some(&at("nowhere"))).count().await, 0, "{name}");
        assert_eq!(store.list(Some(&at("a"))).count().await, 0, "{name}: an object is not below itself");

        assert!(matches!(
            store.put_opts(&at("a"), bytes(1, 2).into(), create()).await,
            Err(Error::AlreadyExists { .. })
        ));
        store.put(&at("a"), bytes(5, 3).into()).await.unwrap();
        assert_eq!(store.get(&at("a")).await.unwrap().bytes().await.unwrap(), bytes(5, 3), "{name}");
        // The S3 server of the tests copies nothing, and neither does the daemon.
        if name != "s3" {
            store.copy(&at("a"), &at("copy")).await.unwrap();
            assert!(store.copy_if_not_exists(&at("b/1"), &at("copy")).await.is_err(), "{name}");
            assert_eq!(store.get(&at("copy")).await.unwrap().bytes().await.unwrap(), bytes(5, 3), "{name}");
        }
        store.delete(&at("a")).await.unwrap();
        assert!(matches!(store.head(&at("a")).await, Err(Error::NotFound { .. })), "{name}");
    }
}

#[tokio::test]
async fn an_object_of_many_parts_has_them_in_their_order() {
    for place in places().await {
        let (name, Some((store, prefix))) = (place.name, objects(&place).await) else { continue };
        let key = prefix.join("parts");
        let parts: Vec<Bytes> = (0..4).map(|number| bytes(6 << 20, number)).collect();

        let mut upload = store.put_multipart(&key).await.unwrap();
        let mut sending: Vec<_> = parts.iter().map(|part| upload.put_part(part.clone().into())).collect();
        // The last one is waited for first.
        sending.reverse();
        futures::future::try_join_all(sending).await.unwrap();
        assert!(store.head(&key).await.is_err(), "{name}: it is not there before it is complete");
        upload.complete().await.unwrap();

        assert_eq!(store.get(&key).await.unwrap().bytes().await.unwrap(), parts.concat(), "{name}");
        let mut given_up = store.put_multipart(&key).await.unwrap();
        given_up.put_part(bytes(6 << 20, 9).into()).await.unwrap();
        given_up.abort().await.unwrap();
        assert_eq!(store.head(&key).await.unwrap().size, 24 << 20, "{name}");
    }
}

#[tokio::test]
async fn an_update_on_condition_is_refused_when_the_object_has_changed_or_the_store_says_that_it_has_none() {
    for place in places().await {
        let opened = place.open().await;
        let can = opened.catalog.capabilities();
        let Placement::Object { store, prefix, .. } = opened.catalog else { continue };
        let key = prefix.join("updated");
        let first = store.put(&key, bytes(1, 1).into()).await.unwrap();
        store.put(&key, bytes(2, 2).into()).await.unwrap();

        let version = object_store::UpdateVersion { e_tag: first.e_tag, version: first.version };
        let stale = store.put_opts(&key, bytes(3, 3).into(), PutOptions::from(PutMode::Update(version))).await;

        match can.conditional_updates {
            true => {
                assert!(matches!(stale, Err(Error::Precondition { .. } | Error::AlreadyExists { .. })), "{stale:?}")
            }
            false => assert!(matches!(stale, Err(Error::NotImplemented { .. })), "{}: {stale:?}", place.name),
        }
        assert_eq!(store.head(&key).await.unwrap().size, 2);
    }
}

#[tokio::test]
async fn an_owner_leaves_its_mark_and_the_newest_one_is_told() {
    for place in places().await {
        let (name, store) = (place.name, place.open().await.data);
        let owner = |epoch, incarnation: &str| StoreOwner { epoch, incarnation: incarnation.to_owned() };
        assert_eq!(store.owners().await.unwrap().newest, None, "{name}");

        assert_eq!(store.leave_owner(&owner(7, "aa")).await.unwrap(), owner(7, "aa"), "{name}");
        assert_eq!(store.leave_owner(&owner(7, "bb")).await.unwrap(), owner(7, "aa"), "{name}: the epoch is taken");
        assert_eq!(store.leave_owner(&owner(12, "cc")).await.unwrap(), owner(12, "cc"), "{name}");

        let owners = store.owners().await.unwrap();
        assert_eq!(owners.newest, Some(owner(12, "cc")), "{name}");
        assert_eq!(owners.epochs, [7, 12], "{name}");
        store.remove_owners(&owners, 12).await;
        assert_eq!(store.owners().await.unwrap().epochs, [12], "{name}: its own stays");
        assert_eq!(store.identity_slot().create("first").await.unwrap(), "first", "{name}");
        assert_eq!(store.identity_slot().create("second").await.unwrap(), "first", "{name}");
    }
}

#[tokio::test]
async fn thousands_of_files_are_listed_and_deleted() {
    for place in places().await.into_iter().filter(|place| place.name != "s3") {
        let (name, store) = (place.name, place.open().await.data);
        // More than a NameNode tells at once, or a server of these tests. Where a file costs more than memory, fewer are
        // enough.
        let count = if name == "memory" { 10_000 } else { 1_100 };
        let ids: Vec<PhysicalFileId> = (0..count).map(|number| PhysicalFileId::new(None, 1, number)).collect();
        let writing = ids.iter().map(|file| async {
            if let Some(mut growing) = write(&store, file, &[bytes(1, 1)]).await {
                growing.close().await.unwrap();
            }
        });
        futures::stream::iter(writing).buffer_unordered(16).collect::<Vec<()>>().await;

        assert_eq!(store.list().await.unwrap().len(), ids.len(), "{name}");
        for some in ids.chunks(500) {
            assert_eq!(store.delete(some.to_vec()).await.len(), some.len(), "{name}");
        }
        assert_eq!(store.list().await.unwrap(), [], "{name}");
    }
}
