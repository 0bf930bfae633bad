//! A cluster that asks everybody for tickets, with its data encrypted on the way (`dfs.data.transfer.protection`: privacy).

use std::process::Command;
use std::time::Duration;

use super::{Kind, TAKES_AT_MOST, TURN, Watchdog, World, survives_kills, world_survives};

/// How long a ticket is good that is to run out during a test.
const SHORT: Duration = Duration::from_secs(25);

impl World {
    fn keytab(&self) -> String {
        format!("{}/esker.keytab", self.cluster.folder)
    }

    /// The same with tickets of its own, none so far.
    fn with_own_tickets(self) -> Self {
        let cache = format!("FILE:{}", self.folder.path().join("tickets").display());
        self.with("KRB5CCNAME", cache)
    }

    /// Fetches a ticket for so long.
    async fn fetch_ticket(&self, lives: Duration) {
        fetch_ticket(self.keytab(), self.environment.clone(), lives).await;
    }
}

async fn fetch_ticket(keytab: String, environment: Vec<(&'static str, String)>, lives: Duration) {
    let mut kinit = Command::new("kinit");
    kinit.args(["-l", &lives.as_secs().to_string(), "-kt", &keytab, "esker"]).envs(environment);
    let status = tokio::task::spawn_blocking(move || kinit.status()).await.unwrap().unwrap();
    assert!(status.success(), "kinit: {status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_ticket_all_is_as_without_kerberos() {
    let _turn = TURN.lock().await;
    let Some(world) = World::on(Kind::Kerberos, "ticket") else { return };
    world_survives(world, "ticket", async |cluster, writers| {
        cluster.run("kill", &["dn1"]).await;
        writers.answers(50).await;
        cluster.run("up", &["dn1"]).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_keytab_it_fetches_its_tickets_itself_and_leaves_what_it_answered_when_it_is_killed() {
    let _turn = TURN.lock().await;
    let Some(world) = World::on(Kind::Kerberos, "keytab") else { return };
    let keytab = world.keytab();
    survives_kills(world.with_own_tickets().with("KRB5_CLIENT_KTNAME", keytab), "keytab", 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_ticket_the_start_and_every_command_say_what_is_missing() {
    let _turn = TURN.lock().await;
    let Some(world) = World::on(Kind::Kerberos, "none") else { return };
    let world = world.with_own_tickets();
    let _watchdog = Watchdog::watch("none".to_owned(), TAKES_AT_MOST, world.log());

    let daemon = world.spawn();
    let (status, log) = tokio::task::spawn_blocking(move || daemon.wait_end()).await.unwrap();
    let (code, said) = world.esker(&["verify"]).await;

    assert_eq!(status.code(), Some(1), "{log}");
    assert_eq!(code, Some(2), "{said}");
    for text in [log, said] {
        assert!(text.contains("No Kerberos credentials available"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_that_ran_out_costs_nothing_that_was_answered_and_a_new_one_is_taken_at_once() {
    let _turn = TURN.lock().await;
    let Some(world) = World::on(Kind::Kerberos, "short") else { return };
    let world = world.with_own_tickets();
    world.fetch_ticket(SHORT).await;
    let (keytab, environment) = (world.keytab(), world.environment.clone());
    world_survives(world, "short", async |cluster, _| {
        tokio::time::sleep(SHORT).await;
        // A connection lasts longer than the ticket that it was opened with: all are opened anew.
        cluster.run("kill", &["nn"]).await;
        cluster.run("up", &["nn"]).await;
        fetch_ticket(keytab.clone(), environment.clone(), Duration::from_secs(3600)).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delegation_token_does_in_place_of_a_ticket() {
    let _turn = TURN.lock().await;
    let Some(world) = World::on(Kind::Kerberos, "token") else { return };
    // Fetched with the ticket of the suite; the daemon has none.
    let token = world.folder.path().join("token").display().to_string();
    world.cluster.run("sh", &["dt", "--renewer", "esker", &token]).await;
    let world = world.with_own_tickets().with("HADOOP_TOKEN_FILE_LOCATION", token);

    world_survives(world, "token", async |cluster, _| {
        // All connections are opened anew.
        cluster.run("kill", &["nn"]).await;
        cluster.run("up", &["nn"]).await;
    })
    .await;
}
