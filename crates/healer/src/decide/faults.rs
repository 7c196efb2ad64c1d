//! The thirty faults of the field, each beside a near miss that calls for something else.
//!
//! 24, 27 and 28 are about time and restarts: their stories are in `ward/stories.rs`, with those of 29.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::diagnose::diagnose;
use crate::facts::Probe;
use crate::facts::{Dependency, Disk, File, FileState, Holder, Lead, Lock, Match, Switch};
use crate::symptom::Symptom;

const APP: &str = "app.service";
const DB: &str = "db.service";
const MIB: u64 = 1 << 20;

fn failed(symptom: Symptom) -> Facts {
    Facts {
        active: Active::Failed,
        symptoms: vec![symptom],
        invocation: "run-1".into(),
        result: "exit-code".into(),
        ..Facts::healthy(APP)
    }
}

fn killed() -> Facts {
    failed(Symptom::Signal { signal: 9 })
}

fn exited() -> Facts {
    failed(Symptom::ExitCode { status: 1 })
}

/// Failed, with lines that match a pattern.
fn known(pattern: &str, lead: Lead) -> Facts {
    let port = (lead == Lead::ReassignPort).then_some(8080);
    let evidence = vec![format!("a line about {pattern}")];
    Facts { matched: Some(Match { pattern: pattern.into(), lead, evidence, port }), ..exited() }
}

fn silent(times: u32) -> Facts {
    let symptoms = vec![Symptom::ProbeFailing { times, error: "timed out".into() }];
    Facts { probe: Probe::Red { times }, symptoms, ..Facts::healthy(APP) }
}

fn oom(kills: u32) -> Facts {
    let mut facts = failed(Symptom::OomKill { main: true });
    facts.memory = crate::facts::Memory { peak: Some(100 * MIB), limit: Some(100 * MIB), kills, pressure: None };
    facts
}

fn child_oom(probe: Probe) -> Facts {
    Facts { symptoms: vec![Symptom::OomKill { main: false }], probe, ..Facts::healthy(APP) }
}

fn port_held_by(owner: Owner) -> Facts {
    let holder = Holder { pid: 42, started: 7, command: "server".into(), owner };
    Facts { port_holder: Some(holder), free_port: Some(8090), ..known("port_conflict", Lead::ReassignPort) }
}

fn needs(active: Active, probe: Probe) -> Vec<Dependency> {
    vec![Dependency { unit: DB.into(), needs: vec![], active, invocation: "db-1".into(), probe, ours: true }]
}

fn refused(active: Active, probe: Probe) -> Facts {
    Facts { dependencies: needs(active, probe), ..known("connection_refused", Lead::RestartDependencies) }
}

fn file(lead: Lead, pattern: &str, state: FileState) -> Facts {
    let file = File {
        path: "/m/a.gguf".into(),
        state,
        access: "root root -rw-------".into(),
        nearest: Some("/m/a-q4.gguf".into()),
        declared: None,
    };
    Facts { file: Some(file), ..known(pattern, lead) }
}

fn locked(holder: LockHolder) -> Facts {
    let lock = Lock { database: DB.into(), clients: vec!["web.service".into()], holder, ours: true };
    Facts { lock: Some(lock), ..known("database_locked", Lead::RestartDatabase) }
}

fn disk(full: bool) -> Facts {
    Facts { disk: Some(Disk { mount: "/".into(), free: 0, full }), ..known("disk_full", Lead::Alert) }
}

fn after_switch(facts: Facts, closure_changed: bool, failed_units: u32) -> Facts {
    let switch =
        Switch { generation: 8, previous: 7, began_with_it: true, closure_changed, failed_units, ..Switch::default() };
    Facts { switch: Some(switch), ..facts }
}

fn act(remedies: &[Remedy]) -> Decision {
    Decision::Act { ladder: remedies.to_vec(), alert: false }
}

fn act_and_tell(remedy: Remedy) -> Decision {
    Decision::Act { ladder: vec![remedy], alert: true }
}

fn hold(reason: Reason) -> Decision {
    Decision::Hold { reason, alert: false }
}

fn tell(reason: Reason) -> Decision {
    Decision::Hold { reason, alert: true }
}

const ROLLBACK: Remedy = Remedy::Rollback { from: 8, to: 7 };

fn strict() -> Policy {
    Policy::default()
}

fn movable() -> Policy {
    Policy { reassign_port: true, ..Policy::default() }
}

fn roomy() -> Policy {
    Policy { memory_ceiling: Some(120 * MIB), ..Policy::default() }
}

fn kept() -> Policy {
    Policy { keep_running: true, ..Policy::default() }
}

#[test]
fn every_fault_gets_its_answer_and_its_near_miss_another() {
    let restart = || act(&[Remedy::Restart]);
    let ask = || Decision::Ask { remedy: ROLLBACK };
    let down = || refused(Active::Failed, Probe::None);
    let restart_db = || act(&[Remedy::RestartDependencies { units: vec![DB.into()] }]);
    let looping = |facts: Facts| Facts { symptoms: vec![Symptom::StartLimitHit], quick_failures: 5, ..facts };
    let stopped = |facts: Facts| Facts { active: Active::Inactive, stopped_by_operator: true, ..facts };
    let clients = || vec!["web.service".to_owned()];
    let to = |to| Remedy::RaiseMemory { to };
    let end = || Remedy::EndOrphan { pid: 42, started: 7 };
    let mut declared = file(Lead::FetchModel, "model_missing", FileState::Missing);
    declared.file.as_mut().unwrap().declared = Some("a".into());
    let moved = || Remedy::ReassignPort { from: 8080, to: 8090 };
    #[rustfmt::skip]
    let table: Vec<(&str, Facts, Policy, Decision)> = vec![
        ("1 killed, Restart=on-failure", Facts { active: Active::Activating, manager_restarts: true, ..killed() }, strict(), hold(Reason::LeftToManager)),
        ("1 the same, seen a little later", Facts { active: Active::Active, ..killed() }, strict(), hold(Reason::LeftToManager)),
        ("1 near: a loop that systemd hides", Facts { symptoms: vec![Symptom::RestartLoop { restarts: 9 }], manager_restarts: true, ..killed() }, strict(), tell(Reason::CrashLoop)),
        ("2 killed, Restart=no", killed(), strict(), restart()),
        ("2 near: it ended and nobody wants it", Facts { symptoms: vec![], active: Active::Inactive, ..killed() }, strict(), hold(Reason::Healthy)),
        ("3 stopped by a signal: silent and active", silent(3), strict(), restart()),
        ("3 near: two failed probes", silent(2), strict(), hold(Reason::BelowThreshold)),
        ("4 killed at MemoryMax once", oom(1), strict(), act_and_tell(Remedy::Restart)),
        ("4 near: systemd restarts it", Facts { manager_restarts: true, ..oom(1) }, strict(), tell(Reason::LeftToManager)),
        ("5 a child killed, the unit is well", child_oom(Probe::Green), strict(), hold(Reason::ChildKilled)),
        ("5 near: the unit is not", child_oom(Probe::Red { times: 3 }), strict(), restart()),
        ("6 killed for memory again, no ceiling, it goes on", Facts { active: Active::Activating, manager_restarts: true, ..oom(2) }, strict(), act_and_tell(Remedy::Stop)),
        ("6 the same, down already", oom(2), strict(), tell(Reason::MemoryCeiling)),
        ("6 the same, within the ceiling", oom(2), roomy(), act_and_tell(to(120 * MIB))),
        ("6 near: at the ceiling", Facts { memory: crate::facts::Memory { limit: Some(120 * MIB), ..oom(2).memory }, ..oom(2) }, roomy(), tell(Reason::MemoryCeiling)),
        ("7 port held by an orphan of the same unit", port_held_by(Owner::Orphan), strict(), act(&[end()])),
        ("7 the same, movable", port_held_by(Owner::Orphan), movable(), act(&[end(), moved()])),
        ("8 port held by another unit", port_held_by(Owner::Unit("other.service".into())), strict(), tell(Reason::PortHeld)),
        ("8 the same, movable", port_held_by(Owner::Unit("other.service".into())), movable(), act(&[moved()])),
        ("8 held by no unit", port_held_by(Owner::Nobody), strict(), tell(Reason::PortHeld)),
        ("8 held by its own present run", port_held_by(Owner::Itself), strict(), tell(Reason::PortHeld)),
        ("8 near: free by now", known("port_conflict", Lead::ReassignPort), strict(), restart()),
        ("9 dependency down", down(), strict(), restart_db()),
        ("9 the same, not ours", Facts { dependencies: vec![Dependency { ours: false, ..down().dependencies[0].clone() }], ..down() }, strict(), tell(Reason::DependencyNotOurs)),
        ("9 the same, no line says so", Facts { matched: None, ..down() }, strict(), restart_db()),
        ("10 dependency slow, still starting", refused(Active::Activating, Probe::None), strict(), hold(Reason::DependencyBusy)),
        ("10 dependency up and not answering yet", refused(Active::Active, Probe::Pending), strict(), hold(Reason::DependencyBusy)),
        ("10 the program tries again itself", Facts { active: Active::Active, probe: Probe::Red { times: 3 }, ..known("retrying", Lead::Wait) }, strict(), hold(Reason::Retrying)),
        ("10 near: the dependency is up", refused(Active::Active, Probe::Green), strict(), restart()),
        ("11 dependency's start failed", Facts { active: Active::Inactive, result: "success".into(), symptoms: vec![Symptom::DependencyFailed], dependencies: needs(Active::Failed, Probe::None), ..Facts::healthy(APP) }, strict(), restart_db()),
        ("11 the same, the dependency is up again", Facts { active: Active::Inactive, symptoms: vec![Symptom::DependencyFailed], dependencies: needs(Active::Active, Probe::Green), ..Facts::healthy(APP) }, strict(), restart()),
        ("12 start limit hit, cause gone", looping(refused(Active::Active, Probe::Green)), strict(), restart()),
        ("12 the same, nothing tells, not alike", Facts { symptoms: vec![Symptom::StartLimitHit], quick_failures: 1, ..exited() }, strict(), restart()),
        ("13 crash loop, same cause", looping(exited()), strict(), tell(Reason::CrashLoop)),
        ("14 model missing", file(Lead::FetchModel, "model_missing", FileState::Missing), strict(), tell(Reason::ModelMissing)),
        ("14 the same, declared with a hash", declared, strict(), act_and_tell(Remedy::FetchModel { model: "a".into() })),
        ("15 model unreadable", file(Lead::FetchModel, "model_missing", FileState::Forbidden), strict(), tell(Reason::ModelUnreadable)),
        ("15 model truncated", file(Lead::FetchModel, "model_missing", FileState::Corrupt), strict(), tell(Reason::ModelUnreadable)),
        ("15 the same, by its own pattern", file(Lead::Alert, "model_unreadable", FileState::Corrupt), strict(), tell(Reason::ModelUnreadable)),
        ("15 near: good by now", file(Lead::FetchModel, "model_missing", FileState::Good), strict(), restart()),
        ("16 permission denied", file(Lead::Alert, "permission_denied", FileState::Forbidden), strict(), tell(Reason::PermissionDenied)),
        ("16 near: allowed by now", file(Lead::Alert, "permission_denied", FileState::Good), strict(), restart()),
        ("17 database locked by one at work", locked(LockHolder::Working { pid: 5 }), strict(), hold(Reason::LockHeld)),
        ("17 near: it lives and does nothing", locked(LockHolder::Idle { pid: 5 }), strict(), tell(Reason::LockStuck)),
        ("18 lock left by the dead", locked(LockHolder::Dead), strict(), act(&[Remedy::RestartDatabase { database: DB.into(), clients: clients() }])),
        ("18 near: free by now", locked(LockHolder::Free), strict(), restart()),
        ("18 near: nobody knows", locked(LockHolder::Unknown), strict(), tell(Reason::LockStuck)),
        ("19 disk full", disk(true), strict(), tell(Reason::DiskFull)),
        ("19 the same, no line says so", Facts { matched: None, ..disk(true) }, strict(), tell(Reason::DiskFull)),
        ("19 near: room again", disk(false), strict(), restart()),
        ("19 near: full, and the port is what it failed over", Facts { disk: disk(true).disk, ..port_held_by(Owner::Orphan) }, strict(), act(&[end()])),
        ("20 bad setting", Facts { load: Load::BadSetting, ..exited() }, strict(), tell(Reason::BadConfiguration)),
        ("20 exit status 78", Facts { exit_status: Some(78), ..exited() }, strict(), tell(Reason::BadConfiguration)),
        ("20 result resources", Facts { result: "resources".into(), ..exited() }, strict(), tell(Reason::BadConfiguration)),
        ("20 the same, the generation is new", after_switch(Facts { exit_status: Some(78), ..exited() }, true, 1), strict(), ask()),
        ("20 near: exit status 77", Facts { exit_status: Some(77), ..exited() }, strict(), restart()),
        ("21 stopped by the operator", stopped(killed()), strict(), hold(Reason::OperatorStopped)),
        ("21 near: keep_running", stopped(killed()), kept(), restart()),
        ("22 masked", Facts { load: Load::Masked, ..killed() }, kept(), hold(Reason::Masked)),
        ("23 maintenance", Facts { paused: true, ..killed() }, kept(), hold(Reason::Paused)),
        ("23 near: nixos-rebuild runs", Facts { rebuilding: true, ..killed() }, kept(), hold(Reason::Rebuilding)),
        ("23 near: a job waits", Facts { job_queued: true, ..killed() }, kept(), hold(Reason::JobQueued)),
        ("23 near: the machine goes down", Facts { shutting_down: true, ..killed() }, kept(), hold(Reason::ShuttingDown)),
        ("25 several fail right after a switch", after_switch(killed(), true, 3), strict(), ask()),
        ("25 the same, of a known cause", after_switch(port_held_by(Owner::Orphan), true, 3), strict(), ask()),
        ("25 near: only one, so it is tried first", after_switch(killed(), true, 1), strict(), restart()),
        ("26 the switch did not change the unit", after_switch(killed(), false, 3), strict(), restart()),
        ("26 the same, bad configuration", after_switch(Facts { exit_status: Some(78), ..exited() }, false, 3), strict(), tell(Reason::BadConfiguration)),
        ("29 one of fifty that need what is down", down(), strict(), restart_db()),
        ("30 a forged line of a healthy unit", Facts { active: Active::Active, symptoms: vec![], port_holder: port_held_by(Owner::Orphan).port_holder, ..known("port_conflict", Lead::ReassignPort) }, movable(), hold(Reason::Healthy)),
        ("30 near: the probe fails too", Facts { matched: known("port_conflict", Lead::ReassignPort).matched, port_holder: port_held_by(Owner::Orphan).port_holder, ..silent(3) }, strict(), act(&[end()])),
    ];
    for (name, facts, policy, expected) in table {
        let cause = diagnose(&facts, &policy);
        let decision = decide(&facts, &cause, &policy, &History::default());
        assert_eq!(decision, expected, "{name}: {cause:?}");
    }
}

#[test]
fn a_bad_generation_is_proposed_once() {
    let facts = after_switch(killed(), true, 3);
    let history = History { rollback_proposed: true, ..History::default() };
    let cause = diagnose(&facts, &strict());
    assert_eq!(decide(&facts, &cause, &strict(), &history), hold(Reason::RollbackProposed));
}

#[test]
fn when_nothing_is_left_to_try_the_new_generation_is_asked_about_and_then_a_person() {
    let tried = [Remedy::Restart];
    let history = History { tried: &tried, ..History::default() };
    let (old, new) = (killed(), after_switch(killed(), true, 1));
    assert_eq!(decide(&new, &Cause::Crashed, &strict(), &history), Decision::Ask { remedy: ROLLBACK });
    assert_eq!(decide(&old, &Cause::Crashed, &strict(), &history), tell(Reason::Exhausted));
    let trial = History { trial: true, ..history };
    assert_eq!(decide(&old, &Cause::Crashed, &strict(), &trial), act(&[Remedy::Restart]));
}

#[test]
fn what_helped_before_against_an_unknown_failure_comes_first() {
    let facts = Facts { dependencies: needs(Active::Active, Probe::Green), ..killed() };
    let history = History { learned: Some("restart_dependencies"), ..History::default() };
    let first = Remedy::RestartDependencies { units: vec![DB.into()] };
    assert_eq!(decide(&facts, &Cause::Crashed, &strict(), &history), act(&[first.clone(), Remedy::Restart]));
    let steps: Vec<String> = first.steps(&facts).iter().map(ToString::to_string).collect();
    assert_eq!(steps, ["restart db.service", "wait for db.service", "reset-failed app.service", "start app.service"]);
}

#[test]
fn dependencies_come_up_in_their_order() {
    let dependency = |unit: &str, needs: &[&str]| Dependency {
        unit: unit.into(),
        needs: needs.iter().map(|s| (*s).to_owned()).collect(),
        active: Active::Failed,
        invocation: String::new(),
        probe: Probe::None,
        ours: true,
    };
    let dependencies = vec![dependency("api", &["db"]), dependency("cache", &["db"]), dependency("db", &[])];
    let facts = Facts { dependencies, ..killed() };
    let units = ["db", "api", "cache"].map(str::to_owned).to_vec();
    assert_eq!(diagnose(&facts, &strict()), Cause::DependencyDown { units, ours: true });
}

#[test]
fn what_a_person_reads_names_the_thing_and_the_fix() {
    let text = |facts: &Facts| {
        let cause = diagnose(facts, &strict());
        format!("{cause}. {}", cause.advice(APP).unwrap_or_default())
    };
    let missing = text(&file(Lead::FetchModel, "model_missing", FileState::Missing));
    assert!(missing.contains("/m/a.gguf is not there; the nearest that is: /m/a-q4.gguf"), "{missing}");
    let held = text(&port_held_by(Owner::Unit("other.service".into())));
    assert!(held.contains("port 8080 is held by process 42 (server), other.service"), "{held}");
    let denied = text(&file(Lead::Alert, "permission_denied", FileState::Forbidden));
    assert!(denied.contains("root root -rw-------") && denied.contains("systemd.tmpfiles"), "{denied}");
    let memory = text(&oom(2));
    assert!(memory.contains("MemoryPeak 104857600 bytes") && memory.contains("MemoryMax = \"157286400\""), "{memory}");
}
