//! A nameservice as operators run it: JournalNodes, two NameNodes of which one is active, an observer before both in the list of
//! clients, and failover controllers that make the other one active when one dies. Nobody types a command.

use super::{Kind, TAKES_AT_MOST, TURN, Watchdog, World, Writers, world_survives};

#[tokio::test(flavor = "multi_thread")]
async fn an_active_namenode_that_is_killed_costs_nothing_once_the_other_one_is_active() {
    let _turn = TURN.lock().await;
    let Some(world) = World::on(Kind::Ha, "failover") else { return };
    world_survives(world, "failover", async |cluster, writers| {
        for (active, other) in [("nn", "nn2"), ("nn2", "nn")] {
            cluster.run("kill", &[active]).await;
            writers.answers(50).await;
            cluster.run("active", &[other]).await;
            // From here on it is the one that stands by.
            cluster.run("up", &[active]).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_starts_and_takes_over_while_one_of_the_namenodes_is_dead_and_while_it_stands_by() {
    let _turn = TURN.lock().await;
    let Some(mut world) = World::on(Kind::Ha, "one-dead") else { return };
    let _watchdog = Watchdog::watch("one-dead".to_owned(), TAKES_AT_MOST, world.log());
    let (mut daemon, ready) = world.start().await;
    let mut writers = Writers::begin(&ready, "before");
    writers.answers(40).await;

    for (active, other) in [("nn", "nn2"), ("nn2", "nn")] {
        // Both at once, in the middle of groups.
        drop(daemon);
        world.cluster.run("kill", &[active]).await;
        writers.end(&mut world).await;
        world.cluster.run("active", &[other]).await;
        let (dead, ready) = world.start().await;
        world.check(&ready).await;
        writers = Writers::begin(&ready, &format!("{active}-dead"));
        writers.answers(40).await;

        world.cluster.run("up", &[active]).await;
        drop(dead);
        writers.end(&mut world).await;
        let (next, ready) = world.start().await;
        world.check(&ready).await;
        writers = Writers::begin(&ready, &format!("{active}-by"));
        writers.answers(40).await;
        daemon = next;
    }

    writers.end(&mut world).await;
    world.check_after_the_end(daemon).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journalnode_that_is_dead_and_an_observer_that_is_cost_nothing() {
    let _turn = TURN.lock().await;
    let Some(world) = World::on(Kind::Ha, "journal") else { return };
    world_survives(world, "journal", async |cluster, writers| {
        for node in ["jn0", "nn0"] {
            cluster.run("kill", &[node]).await;
            writers.answers(50).await;
            cluster.run("up", &[node]).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_active_namenode_that_stands_still_costs_nothing_once_the_other_one_is_active() {
    let _turn = TURN.lock().await;
    let Some(world) = World::on(Kind::Ha, "frozen") else { return };
    world_survives(world, "frozen", async |cluster, writers| {
        for (active, other) in [("nn", "nn2"), ("nn2", "nn")] {
            // It takes connections, and never answers.
            cluster.run("kill", &[active, "STOP"]).await;
            cluster.run("active", &[other]).await;
            writers.answers(50).await;
            cluster.run("kill", &[active]).await;
            cluster.run("up", &[active]).await;
        }
    })
    .await;
}
