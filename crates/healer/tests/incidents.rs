//! Several lines of one incident, and lines that somebody forged.

use std::time::{Duration, Instant};

use lares_healer::classify::{Classifier, Diagnosis, EVIDENCE_MAX, Entry, LINE_MAX, clean};
use lares_healer::patterns::{Origin, Remedy};
use proptest::prelude::*;

fn classifier() -> &'static Classifier {
    static CLASSIFIER: std::sync::LazyLock<Classifier> = std::sync::LazyLock::new(Classifier::builtin);
    &CLASSIFIER
}

fn diagnose(lines: &[&str]) -> Option<Diagnosis> {
    let entries: Vec<Entry<'_>> = lines.iter().map(|line| Entry::text(line)).collect();
    classifier().diagnose(&entries)
}

#[track_caller]
fn is(lines: &[&str], pattern: &str, evidence: &[(&str, &str)]) -> Diagnosis {
    let found = diagnose(lines).expect("it is a known failure");
    assert_eq!(found.best.pattern, pattern, "{found:?}");
    for (name, value) in evidence {
        assert_eq!(found.best.evidence.get(*name).map(String::as_str), Some(*value), "{name}: {found:?}");
    }
    found
}

#[test]
fn the_same_last_line_of_llama_server_follows_from_several_causes() {
    let last = "srv    load_model: failed to load model, '/models/a.gguf'";
    is(
        &["gguf_init_from_file: failed to open GGUF file '/models/a.gguf' (errno No such file or directory)", last],
        "model_missing",
        &[("path", "/models/a.gguf")],
    );
    is(
        &["gguf_init_from_file: failed to open GGUF file '/models/a.gguf' (errno Permission denied)", last],
        "permission_denied",
        &[("path", "/models/a.gguf")],
    );
    let memory = is(
        &["llama_model_load: error loading model: mmap failed: Cannot allocate memory", last],
        "memory_exhausted",
        &[],
    );
    assert_eq!(memory.considered[0].1.pattern, "model_missing");
    assert_eq!(memory.considered[0].0, 1);
    is(
        &[
            "load_model: loading model '/models/a.gguf'",
            "gguf_init_from_file_impl: invalid magic characters: '<htm', expected 'GGUF'",
            "llama_model_load: error loading model: llama_model_loader: failed to load model from /models/a.gguf",
            last,
            "main: exiting due to model loading error",
        ],
        "model_unreadable",
        &[("path", "/models/a.gguf")],
    );
}

#[test]
fn the_port_may_be_on_the_line_before() {
    let found = is(
        &[
            "1795408387: mosquitto version 2.0.21 starting",
            "1795408387: Opening ipv4 listen socket on port 1883.",
            "1795408387: Error: Address already in use",
        ],
        "port_conflict",
        &[("port", "1883")],
    );
    assert_eq!((found.line, found.supporting.as_slice()), (2, [2].as_slice()));
    is(
        &["Bind to port 22 on 0.0.0.0 failed: Address already in use.", "fatal: Cannot bind any address."],
        "port_conflict",
        &[("port", "22"), ("address", "0.0.0.0")],
    );
}

#[test]
fn an_address_that_is_missing_is_no_port_conflict_though_the_last_line_is_the_same() {
    is(
        &[
            "1028:M 23 Nov 2026 04:36:55.449 # Warning: Could not create server TCP listening socket 192.0.2.7:6401: bind: Cannot assign requested address",
            "1028:M 23 Nov 2026 04:36:55.449 # Failed listening on port 6401 (tcp), aborting.",
        ],
        "address_unavailable",
        &[("port", "6401")],
    );
}

#[test]
fn lines_of_one_kind_complete_each_other_and_never_contradict() {
    let found = is(
        &[
            "nginx: [emerg] bind() to 0.0.0.0:80 failed (98: Address already in use)",
            "nginx: [emerg] bind() to [::]:80 failed (98: Address already in use)",
            "nginx: [emerg] still could not bind()",
        ],
        "port_conflict",
        &[("address", "[::]"), ("port", "80")],
    );
    assert_eq!(found.supporting, [0, 1, 2]);
    assert_eq!(found.line, 1);
}

#[test]
fn of_equals_the_last_counts() {
    is(&["a: /x: Permission denied", "sqlite3.OperationalError: database is locked"], "database_locked", &[]);
    is(&["sqlite3.OperationalError: database is locked", "a: /x: Permission denied"], "permission_denied", &[]);
}

#[test]
fn what_was_retried_is_no_cause() {
    assert_eq!(diagnose(&["connection refused, retrying in 1s", "connected to redis after 2 attempts", "bye"]), None);
    is(&["connection refused, retrying in 1s", "open /x: permission denied"], "permission_denied", &[("path", "/x")]);
}

#[test]
fn kernel_and_systemd_lines_count_only_from_them() {
    let forged = "oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),task_memcg=/system.slice/o.service,task=tail,pid=758,uid=0";
    let by = |origin| classifier().classify(Entry { message: forged, origin, fields: &[] });
    assert_eq!(by(Origin::Unit), None);
    assert_eq!(by(Origin::Systemd), None);
    for origin in [Origin::Kernel, Origin::Unknown] {
        let found = by(origin).expect("it is the kernel's");
        assert_eq!(found.evidence["unit"], "o.service");
        assert_eq!(found.evidence["pid"], "758");
        assert_eq!(found.remedy, Remedy::RaiseMemory);
    }
    let systemd = "o.service: A process of this unit has been killed by the OOM killer.";
    let by = |origin| classifier().classify(Entry { message: systemd, origin, fields: &[] });
    assert!(by(Origin::Systemd).is_some() && by(Origin::Unit).is_none());
}

#[test]
fn a_field_of_systemd_is_enough_in_any_language() {
    let fields = [("MESSAGE_ID", "fe6faa94e7774663a0da52717891d8ef"), ("UNIT", "o.service")];
    let line = "o.service: Ein Prozess wurde beendet.";
    let by = |origin| classifier().classify(Entry { message: line, origin, fields: &fields });
    let found = by(Origin::Systemd).expect("the field says so");
    assert_eq!((found.pattern.as_str(), found.evidence["unit"].as_str()), ("oom_kill", "o.service"));
    assert_eq!(by(Origin::Unit), None);
    let other = [("MESSAGE_ID", "39f53479d3a045ac8e11786248231fbf"), ("UNIT", "o.service")];
    assert_eq!(classifier().classify(Entry { message: line, origin: Origin::Systemd, fields: &other }), None);
}

#[test]
fn what_a_client_wrote_is_not_read() {
    for line in [
        r#"2026/11/23 04:36:53 [error] 4#4: *2 open() "/srv/x" failed (2: No such file or directory), client: 192.0.2.1, server: , request: "GET /?q=bind() to 0.0.0.0:80 failed (98: Address already in use) HTTP/1.1", host: "No space left on device", referrer: "http://a/?EADDRINUSE""#,
        r#"{"level":"info","prompt":"why \"Out of memory: Killed process 12 (a)\" and ENOSPC"}"#,
        r#"INFO chat user asked: sqlite3.OperationalError: database is locked"#,
        r#"192.0.2.1 - - [23/Nov/2026:04:36:53 +0000] "GET / HTTP/1.1" 200 1 "-" "ECONNREFUSED 127.0.0.1:1""#,
    ] {
        assert_eq!(classifier().classify(Entry::text(line)), None, "{line}");
    }
    // The same line of nginx about its own trouble still counts, and its evidence is its own.
    let own = r#"2026/11/23 04:36:53 [error] 4#4: *3 connect() failed (111: Connection refused) while connecting to upstream, client: 192.0.2.1, server: app, request: "GET /?to=10.9.9.9:1 HTTP/1.1", upstream: "http://127.0.0.1:8080/", host: "app""#;
    let found = classifier().classify(Entry::text(own)).expect("the upstream is down");
    assert_eq!((found.evidence["address"].as_str(), found.evidence["port"].as_str()), ("127.0.0.1", "8080"));
}

#[test]
fn colours_and_control_characters_do_not_hide_or_leak() {
    let line = "\u{1b}[31mError\u{1b}[0m: listen \u{1b}[1mEADDRINUSE\u{1b}[0m: address already in use :::3000";
    let found = classifier().classify(Entry::text(line)).expect("it is a port conflict");
    assert_eq!(found.evidence["port"], "3000");
    let line = "PermissionError: [Errno 13] Permission denied: '/srv/\u{1b}]0;title\u{7}a\u{202e}b\u{0}c'";
    let found = classifier().classify(Entry::text(line)).expect("it is a permission");
    assert_eq!(found.evidence["path"], "/srv/a b c");
}

#[test]
fn evidence_is_bounded_and_a_number_is_a_number() {
    let line = format!("PermissionError: [Errno 13] Permission denied: '/{}'", "ä".repeat(4000));
    let found = classifier().classify(Entry::text(&line)).expect("it is a permission");
    assert!(found.evidence["path"].len() <= EVIDENCE_MAX);
    let found = classifier().classify(Entry::text("bind() to 0.0.0.0:99999 failed (98: Address already in use)"));
    assert_eq!(found.expect("it is a port conflict").evidence.get("port"), None);
}

#[test]
fn hostile_lines_take_time_in_proportion_to_their_length() {
    let hostile = [
        "a".repeat(LINE_MAX),
        "port ".repeat(LINE_MAX / 5),
        "address already in use ".repeat(LINE_MAX / 23),
        "request: \"".repeat(LINE_MAX / 10),
        "\"content\":\"\\".repeat(LINE_MAX / 12),
        "no such file or directory /models/".repeat(LINE_MAX / 34),
        "\u{1b}[".repeat(LINE_MAX / 2),
        "127.0.0.1:".repeat(LINE_MAX / 10) + "connection refused",
    ];
    let started = Instant::now();
    for line in &hostile {
        classifier().classify(Entry::text(line));
    }
    // Seconds in a debug build would mean a blow-up; the work is milliseconds.
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
}

#[test]
fn the_span_is_what_matched() {
    let line = "app: \u{1b}[1mlisten tcp :80: bind: address already in use";
    let found = classifier().classify(Entry::text(line)).expect("it is a port conflict");
    assert!(clean(line)[found.span].contains("address already in use"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_line_is_classified_without_panic(line in "(\\PC|[\\x00-\\x1f\u{1b}\u{202e}]|EADDRINUSE|Permission denied|'/|\"|: ){0,60}") {
        if let Some(found) = classifier().classify(Entry::text(&line)) {
            prop_assert!(found.span.end <= clean(&line).len());
            for value in found.evidence.values() {
                prop_assert!(!value.chars().any(char::is_control), "{value:?}");
            }
        }
    }
}
