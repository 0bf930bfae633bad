//! Folders whose files are encrypted by their clients.

use object_store::ObjectStoreExt;
use object_store::path::Path;

use super::{TAKES_AT_MOST, TURN, Watchdog, World, client};

impl World {
    /// Makes an encryption zone of a folder of the store. Returns its path in the HDFS.
    async fn encrypt(&self, below: &str) -> String {
        let zone = format!("{}{below}", &self.url[self.cluster.url.len()..]);
        self.cluster.run("sh", &["fs", "-mkdir", "-p", &zone]).await;
        self.cluster.run("sh", &["crypto", "-createZone", "-keyName", "esker", "-path", &zone]).await;
        zone
    }

    /// The files below a folder of the HDFS, as Hadoop lists them.
    async fn files_below(&self, folder: &str) -> Vec<String> {
        let listed = self.cluster.run("sh", &["fs", "-ls", "-R", folder]).await;
        listed.lines().filter(|line| line.starts_with('-')).map(str::to_owned).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_in_an_encryption_zone_is_refused_with_the_reason_and_nothing_stays_in_it() {
    let _turn = TURN.lock().await;
    let Some(world) = World::new("zone") else { return };
    let _watchdog = Watchdog::watch("zone".to_owned(), TAKES_AT_MOST, world.log());
    let zone = world.encrypt("").await;

    let daemon = world.spawn();
    let (status, log) = tokio::task::spawn_blocking(move || daemon.wait_end()).await.unwrap();

    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains(&format!("{zone} is in an encryption zone")), "{log}");
    assert_eq!(world.files_below(&zone).await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_data_alone_are_in_a_zone_nothing_is_written_to_it() {
    let _turn = TURN.lock().await;
    let Some(world) = World::new("zone-of-data") else { return };
    let _watchdog = Watchdog::watch("zone-of-data".to_owned(), TAKES_AT_MOST, world.log());
    let zone = world.encrypt("/data").await;
    let (daemon, ready) = world.start().await;

    let put = client(&ready).put(&Path::from("jobs/a/1"), vec![7; 900_000].into()).await;

    assert!(put.is_err(), "{put:?}");
    assert!(daemon.log().contains("encryption zone"), "{}", daemon.log());
    assert_eq!(world.files_below(&zone).await, Vec::<String>::new());
    tokio::task::spawn_blocking(move || daemon.terminate()).await.unwrap();
}
