//! A nameservice: two NameNodes with their edits in one folder, of which one is active.

use super::{Kind, TAKES_AT_MOST, TURN, Watchdog, World, Writers, world_survives};

#[tokio::test(flavor = "multi_thread")]
async fn an_active_namenode_that_is_killed_costs_nothing_once_the_other_one_is_active() {
    let _turn = TURN.lock().await;
    let Some(world) = World::on(Kind::Ha, "failover") else { return };
    world_survives(world, "failover", async |cluster, writers| {
        for (active, other) in [("nn", "nn2"), ("nn2", "nn")] {
            cluster.run("kill", &[active]).await;
            cluster.run("active", &[other]).await;
            writers.answers(50).await;
            // From here on it is the one that stands by.
            cluster.run("up", &[active]).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_starts_and_takes_over_while_one_of_the_namenodes_is_dead() {
    let _turn = TURN.lock().await;
    let Some(mut world) = World::on(Kind::Ha, "one-dead") else { return };
    let _watchdog = Watchdog::watch("one-dead".to_owned(), TAKES_AT_MOST, world.log());
    let (daemon, ready) = world.start().await;
    let writers = Writers::begin(&ready, "before");
    writers.answers(40).await;

    // Both at once, in the middle of groups.
    drop(daemon);
    world.cluster.run("kill", &["nn"]).await;
    writers.end(&mut world).await;
    world.cluster.run("active", &["nn2"]).await;
    let (daemon, ready) = world.start().await;
    world.check(&ready).await;
    let writers = Writers::begin(&ready, "after");
    writers.answers(40).await;
    writers.end(&mut world).await;
    world.check_after_the_end(daemon).await;

    world.cluster.run("up", &["nn"]).await;
    world.cluster.run("kill", &["nn2"]).await;
    world.cluster.run("active", &["nn"]).await;
    world.cluster.run("up", &["nn2"]).await;
    world.verify().await;
}
