//! A journal whose log is appended to on a store with leases.

use super::*;
use crate::catalog::slate::snapshot::Snapshot;
use crate::store::log_memory::MemoryLogFolder;

const FORMAT: &str = "some/prefix/FORMAT";

fn leased(store: &Arc<dyn ObjectStore>, folder: &MemoryLogFolder) -> Placement {
    Placement::Object {
        store: Arc::clone(store),
        prefix: Path::from("some/prefix"),
        can: Capabilities::OBJECT,
        log: Some(Arc::new(folder.clone())),
    }
}

async fn marker(store: &Arc<dyn ObjectStore>) -> String {
    use object_store::ObjectStoreExt;
    String::from_utf8(store.get(&Path::from(FORMAT)).await.unwrap().bytes().await.unwrap().to_vec()).unwrap()
}

fn memory() -> Arc<dyn ObjectStore> {
    Arc::new(InMemory::new())
}

#[tokio::test]
async fn what_was_committed_is_there_after_a_close_and_after_a_crash_and_no_commit_is_an_object() {
    let (store, folder) = (memory(), MemoryLogFolder::new("a"));
    let mut expected = Records::new();
    for round in 0..4 {
        let (journal, records) = open(leased(&store, &folder)).await.unwrap();
        assert_eq!(records, expected);
        for n in 0..10 {
            commit(&journal, vec![put(format!("{round}-{n}"), n)]).await.unwrap();
            expected.insert(Bytes::from(format!("{round}-{n}")), Bytes::from(n.to_string()));
        }
        if round % 2 == 0 {
            journal.close().await.unwrap();
            assert_eq!(folder.open_names(), Vec::<String>::new());
        }
    }

    assert_eq!(groups_of(&*store).await, 0);
    assert_eq!(marker(&store).await, "esker journal 1, log append-log 1\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_newer_owner_replays_all_that_the_older_one_answered() {
    for _ in 0..10 {
        let (store, folder) = (memory(), MemoryLogFolder::new("a"));
        let (older, _) = open(leased(&store, &folder)).await.unwrap();
        let opening = async { open(leased(&store, &folder.owner_of_the_same("b"))).await.unwrap() };
        let (newer, _) = overtaken(&older, 20, opening).await;
        commit(&newer, vec![put("after", 1)]).await.unwrap();
        newer.close().await.unwrap();
    }
}

#[tokio::test]
async fn a_journal_keeps_the_log_that_it_was_made_with() {
    let (store, folder) = (memory(), MemoryLogFolder::new("a"));
    let (journal, _) = open(object(&store)).await.unwrap();
    commit(&journal, vec![put("a", 1)]).await.unwrap();
    drop(journal);

    let (journal, records) = open(leased(&store, &folder)).await.unwrap();
    assert_eq!(records, Records::from([record("a", "1")]));
    commit(&journal, vec![put("b", 2)]).await.unwrap();
    drop(journal);

    assert_eq!(folder.names(), Vec::<String>::new());
    assert!(marker(&store).await.contains("log objects"));
    let (_, records) = open(object(&store)).await.unwrap();
    assert_eq!(records.len(), 2);
}

#[tokio::test]
async fn a_journal_with_a_log_that_is_appended_to_is_not_opened_without_it() {
    let (store, folder) = (memory(), MemoryLogFolder::new("a"));
    let (journal, _) = open(leased(&store, &folder)).await.unwrap();
    journal.close().await.unwrap();

    let error = open(object(&store)).await.unwrap_err();

    assert!(matches!(error, JournalError::WrongFormat { .. }), "{error:?}");
}

#[tokio::test]
async fn a_look_beside_an_owner_names_what_it_cannot_see() {
    let (store, folder) = (memory(), MemoryLogFolder::new("a"));
    let (journal, _) = open(leased(&store, &folder)).await.unwrap();
    commit(&journal, vec![put("a", 1)]).await.unwrap();
    let look = async || {
        let visit = |_, _| Ok::<_, Infallible>(());
        let looker = leased(&store, &folder.owner_of_the_same("looker"));
        let snapshot = Snapshot::open(looker, JournalSettings::default(), visit).await.unwrap();
        let hidden = snapshot.hidden();
        snapshot.close().await.unwrap();
        hidden
    };

    assert_eq!(look().await, folder.open_names());
    assert_eq!(folder.open_names().len(), 1);
    commit(&journal, vec![put("b", 1)]).await.unwrap();
    journal.close().await.unwrap();

    assert_eq!(look().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn log_files_that_are_in_tables_are_collected() {
    let (store, folder) = (memory(), MemoryLogFolder::new("a"));
    let settings = JournalSettings {
        l0_bytes: 1 << 20,
        unflushed_bytes_max: 8 << 20,
        log_segment_bytes: 256 << 10,
        poll_interval: Duration::from_millis(200),
        gc_interval: Duration::from_millis(200),
        gc_age_min: Duration::from_millis(200),
        ..JournalSettings::default()
    };
    let (journal, _) = open_with(leased(&store, &folder), settings.clone()).await.unwrap();

    for n in 0..200 {
        commit(&journal, vec![put(n, "x".repeat(64 << 10))]).await.unwrap();
    }
    let begun = Instant::now();
    while folder.names().len() > 12 {
        assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", folder.names());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    drop(journal);

    let (_, records) = open_with(leased(&store, &folder), settings).await.unwrap();
    assert_eq!(records.len(), 200);
}

#[tokio::test]
async fn a_rebuild_moves_the_log_aside_and_begins_a_new_one() {
    let (store, folder) = (memory(), MemoryLogFolder::new("a"));
    let (journal, _) = open(object(&store)).await.unwrap();
    commit(&journal, vec![put("a", 1)]).await.unwrap();
    journal.close().await.unwrap();
    let settings = JournalSettings { poll_interval: Duration::from_millis(10), ..JournalSettings::default() };
    let placement = leased(&store, &folder);
    let visit = |_, _| Ok::<_, Infallible>(());

    let mut hold = Journal::hold(placement.clone(), Present::Journal, &settings, visit).await.unwrap();
    hold.make_room("x").await.unwrap();
    let rebuilt = Journal::rebuild(placement.clone(), &settings).await.unwrap();
    commit(&rebuilt, vec![put("b", 2)]).await.unwrap();
    rebuilt.finish_rebuild(7).await.unwrap();

    assert_eq!(marker(&store).await, "esker journal 1, log append-log 1\nepochs after 7\n");
    let (journal, records) = open(placement).await.unwrap();
    assert_eq!(records, Records::from([record("b", "2")]));
    assert!(journal.epoch() > 7);
}
