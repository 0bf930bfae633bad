//! Measurements, run by hand: `cargo test --lib measures -- --ignored --nocapture`.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "measures"]
async fn commit_latency() {
    let folder = tempfile::tempdir_in(".").unwrap();
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let batch = |key: String| (0..10).map(move |row| put(format!("{key}-{row}"), "x".repeat(150)));
    for placement in [local(&folder), object(&store)] {
        let begun = Instant::now();
        let (journal, _) = open(placement.clone()).await.unwrap();
        println!("{:?}: open {:?}", journal.kind(), begun.elapsed());
        let mut times = Vec::new();
        for n in 0..1000 {
            let begun = Instant::now();
            commit(&journal, batch(n.to_string()).collect()).await.unwrap();
            times.push(begun.elapsed());
        }
        times.sort();
        println!("lone: p50 {:?}, p99 {:?}", times[500], times[990]);
        for committers in [1, 16, 128] {
            let (begun, per) = (Instant::now(), 8000 / committers);
            let groups = journal.stats().groups;
            join_all((0..committers).map(|committer| {
                let journal = &journal;
                async move {
                    for n in 0..per {
                        commit(journal, batch(format!("{committer}-{n}")).collect()).await.unwrap();
                    }
                }
            }))
            .await;
            let rate = f64::from(committers * per) / begun.elapsed().as_secs_f64();
            let groups = journal.stats().groups - groups;
            println!("{committers} committers: {rate:.0} commits/s, {groups} groups");
        }
        drop(journal);
        let begun = Instant::now();
        let (journal, records) = open(placement.clone()).await.unwrap();
        println!("open after drop: {:?}, {} records", begun.elapsed(), records.len());
        let begun = Instant::now();
        journal.close().await.unwrap();
        println!("close {:?}", begun.elapsed());
        let begun = Instant::now();
        let (_, records) = open(placement).await.unwrap();
        println!("open after close: {:?}, {} records", begun.elapsed(), records.len());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "measures, for half a minute"]
async fn sustained_load() {
    let folder = tempfile::tempdir_in(".").unwrap();
    let (journal, _) = open(local(&folder)).await.unwrap();
    let begun = Instant::now();
    let run = Duration::from_secs(30);
    let mut work = Box::pin(join_all((0..64).map(|committer| {
        let journal = &journal;
        async move {
            let mut commits = 0;
            while begun.elapsed() < run {
                let key = format!("{committer}-{}", commits % 2000);
                let batch = (0..10).map(|row| put(format!("{key}-{row}"), "x".repeat(150)));
                commit(journal, batch.collect()).await.unwrap();
                commits += 1;
            }
            commits
        }
    })));
    let mut ticks = tokio::time::interval(Duration::from_secs(3));
    let commits: u32 = loop {
        tokio::select! {
            done = &mut work => break done.into_iter().sum(),
            _ = ticks.tick() => {
                let files = files(folder.path());
                let bytes: u64 = files.iter().map(|(_, len)| len).sum();
                println!("{} files, {} MB, {:?}", files.len(), bytes >> 20, journal.stats());
            }
        }
    };
    println!("{commits} commits in {:?}", begun.elapsed());
}
