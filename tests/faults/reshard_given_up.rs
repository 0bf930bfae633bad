//! A change of the number of shards is given up, beside the command that makes it, which stands still, or is on its way to somewhere, and goes
//! on when another command has changed the number since.

use esker::cluster::reshard::{self, ReshardError, ReshardReport};
use esker::error::chain;

use crate::faults::{Fault, Gate, Rule, any};
use crate::reshard::{
    Command, Stored, alone, assert_clean, assert_same, assert_there, contents, dies_at, files, marks, member,
    reshard_to, stop, stopped_store,
};
use crate::s3_server::S3Server;
use crate::support::PREFIX;

/// A store of two shards, and what it has.
async fn two_shards() -> (S3Server, Stored) {
    let (server, stored) = stopped_store().await;
    reshard_to(&server, 2).await;
    (server, stored)
}

/// What is held of the command that is late.
async fn held(
    server: &S3Server,
    number: u64,
    keys: fn(&str) -> bool,
    fault: fn(Gate) -> Fault,
) -> Option<(Command, Gate)> {
    let gate = Gate::closed();
    let rule = server.faults().add(Rule::everything(keys).after(number).times(1), fault(gate.clone()));
    let command = Command::start(alone(server), 3);
    tokio::select! {
        () = gate.arrived(1) => {}
        () = command.ended() => {
            rule.lift();
            return None;
        }
    }
    rule.lift();
    Some((command, gate))
}

/// No catalog and no map says anything of a change.
fn assert_unmarked(server: &S3Server, when: &str) {
    let objects = server.objects();
    let last = objects.keys(&format!("{PREFIX}/cluster/map/")).into_iter().max();
    let texts = last.into_iter().chain([format!("{PREFIX}/catalog/FORMAT")]);
    let texts = texts.map(|key| String::from_utf8(objects.get(&key).unwrap().to_vec()).unwrap());
    let marked: Vec<_> = texts.filter(|text| text.contains("resharding")).collect();
    assert_eq!(marked, Vec::<String>::new(), "{when}");
}

/// A daemon has all of it, as before.
async fn assert_served(server: &S3Server, stored: &Stored) {
    let daemon = member(server, "a").await;
    assert_there(&daemon, stored).await;
    stop([daemon]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_goes_on_after_it_was_given_up_and_another_was_made_changes_nothing() {
    let (server, stored) = two_shards().await;
    let expected = contents(&server).await;
    let begin = server.objects().contents();
    let early = std::env::var_os("RESHARD_STEP").is_some();
    let step = |usual: usize| if early { 1 } else { usual };
    let at_marks = (0..24).step_by(step(4)).map(|number| (number, marks as fn(&str) -> bool));
    let at_files = (0..40).step_by(step(19)).map(|number| (number, files as fn(&str) -> bool));
    let at_any = (0..900).step_by(step(170)).map(|number| (number, any as fn(&str) -> bool));
    let mut told = vec![];
    for (round, (number, keys)) in at_marks.chain(at_files).chain(at_any).enumerate() {
        let fault = if round % 2 == 0 { Fault::Held } else { Fault::AnswerHeld };
        let Some((late, gate)) = held(&server, number, keys, fault).await else {
            server.objects().put_back(&begin);
            continue;
        };
        let given_up = reshard::abandon(&alone(&server)).await;
        let came_too_late = matches!(given_up, Err(ReshardError::NothingBegun(_)));
        assert!(given_up.is_ok() || came_too_late, "{number}: {given_up:?}");

        let second = Command::start(alone(&server), 4).join().await.unwrap();
        if let Err(error) = &second {
            // The map that the late one writes is on its way: that is the beginning of a change.
            panic!("{number}: {error}");
        }
        gate.open();
        let late = late.join().await.unwrap();

        let when = format!("{number} {late:?}");
        assert_unmarked(&server, &when);
        assert_same(&contents(&server).await, &expected, &when);
        assert_clean(&server).await;
        told.extend(late.err());
        server.objects().put_back(&begin);
    }
    println!("{told:#?}");
    assert!(told.iter().any(|why| why.contains("was given up by another command")), "{told:#?}");
    reshard_to(&server, 4).await;
    assert_served(&server, &stored).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_gives_up_and_goes_on_after_another_change_was_made_changes_nothing() {
    let (server, stored) = two_shards().await;
    let expected = contents(&server).await;
    assert!(dies_at(&server, 8, files, 3, Fault::AnswerHeld).await);
    let begin = server.objects().contents();
    for number in 0.. {
        server.objects().put_back(&begin);
        let gate = Gate::closed();
        let rule = server.faults().add(Rule::everything(any).after(11 * number).times(1), Fault::Held(gate.clone()));
        let settings = alone(&server);
        let late = tokio::spawn(async move { reshard::abandon(&settings).await });
        tokio::select! {
            () = gate.arrived(1) => {}
            () = crate::support::eventually("it ends", 6 * crate::support::SOON, || async { late.is_finished() }) => {}
        }
        rule.lift();
        if late.is_finished() {
            late.await.unwrap().unwrap();
            break;
        }
        let given_up = reshard::abandon(&alone(&server)).await;
        assert!(given_up.is_ok() || matches!(given_up, Err(ReshardError::NothingBegun(_))), "{number}: {given_up:?}");
        let second: ReshardReport = reshard_to(&server, 4).await;
        gate.open();
        let late = late.await.unwrap();

        let when = format!("{number} {:?}", late.map_err(|error| chain(&error)));
        assert_unmarked(&server, &when);
        assert_same(&contents(&server).await, &expected, &when);
        assert_clean(&server).await;
        assert_eq!(second.to.count, 4);
    }
    reshard_to(&server, 4).await;
    assert_served(&server, &stored).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn given_up_at_any_step_it_is_opened_as_before() {
    let (server, stored) = two_shards().await;
    let expected = contents(&server).await;
    let begin = server.objects().contents();
    let at_marks = (0..18).step_by(2).map(|number| (number, marks as fn(&str) -> bool));
    let at_files = (0..12).step_by(5).map(|number| (number, files as fn(&str) -> bool));
    let mut given_up = 0;
    for (round, (number, keys)) in at_marks.chain(at_files).enumerate() {
        server.objects().put_back(&begin);
        let fault = if round % 2 == 0 { Fault::Held } else { Fault::AnswerHeld };
        dies_at(&server, number, keys, 3, fault).await;

        match reshard::abandon(&alone(&server)).await {
            Ok(report) => {
                assert_eq!((report.from.count, report.to.count), (2, 3));
                given_up += 1;
            }
            Err(ReshardError::NothingBegun(_)) => {}
            Err(error) => panic!("{}", chain(&error)),
        }

        assert_unmarked(&server, &format!("{number}"));
        assert_clean(&server).await;
        assert_same(&contents(&server).await, &expected, &format!("{number}"));
        if round % 3 == 0 {
            assert_served(&server, &stored).await;
        }
    }
    assert!(given_up > 3, "{given_up}");
}
