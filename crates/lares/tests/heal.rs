//! `lares heal classify` as people and programs use it.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use serde_json::Value;
use support::{lares, text};

fn classify(arguments: &[&str]) -> Command {
    let mut command = lares();
    command.args(["heal", "classify"]).args(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn run(arguments: &[&str], input: &[u8]) -> Output {
    let mut child = classify(arguments).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writer = std::thread::spawn(move || {
        // A command that refuses its arguments reads nothing.
        let _ = stdin.write_all(&input);
    });
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    output
}

fn answers(output: &Output) -> Vec<Value> {
    assert!(output.status.success(), "{}", text(output));
    let lines = std::str::from_utf8(&output.stdout).unwrap().lines();
    lines.map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn each_line_gets_one_object() {
    let input = b"2026/11/23 04:33:13 listen tcp 127.0.0.1:8080: bind: address already in use\n\
        all is well\n\
        sqlite3.OperationalError: database is locked\xff\n\
        bash: line 1: /etc/x: Permission denied";
    let answers = answers(&run(&[], input));
    let of = |key: &str| answers.iter().map(|a| a[key].as_str().unwrap_or("-")).collect::<Vec<_>>().join(" ");
    assert_eq!(of("pattern"), "port_conflict - database_locked permission_denied");
    assert_eq!(of("remedy"), "reassign_port - restart_database alert");
    assert_eq!(answers[0]["evidence"], serde_json::json!({ "address": "127.0.0.1", "port": "8080" }));
    assert_eq!(answers[1]["evidence"], serde_json::json!({}));
    assert_eq!(answers[3]["evidence"]["path"], "/etc/x");
    assert_eq!(answers[1]["line"], "all is well");
}

#[test]
fn no_input_gives_no_output() {
    assert_eq!(answers(&run(&[], b"")), Vec::<Value>::new());
}

#[test]
fn an_answer_comes_before_the_next_line() {
    let mut child = classify(&[]).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let stdout = BufReader::new(child.stdout.take().unwrap());
    let (send, receive) = mpsc::channel();
    let reader = std::thread::spawn(move || stdout.lines().for_each(|line| send.send(line.unwrap()).unwrap()));
    for line in ["Error: listen EADDRINUSE: address already in use :::3000\n", "good morning\n"] {
        stdin.write_all(line.as_bytes()).unwrap();
        let answer = receive.recv_timeout(Duration::from_secs(20)).unwrap();
        assert!(answer.contains(line.trim_end()), "{answer}");
    }
    drop(stdin);
    reader.join().unwrap();
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_line_without_end_does_not_fill_the_memory() {
    // 300 MiB of one line, in 200 MB of address space.
    let limited = |mut command: Command| {
        let binary = command.get_program().to_owned();
        command = Command::new("sh");
        command.args(["-c", "ulimit -v 200000; exec \"$0\" heal classify"]).arg(binary);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    };
    let mut child = limited(lares()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || {
        let chunk = vec![b'a'; 1 << 20];
        for _ in 0..300 {
            stdin.write_all(&chunk).unwrap();
        }
        stdin.write_all(b"\nENOSPC\n").unwrap();
    });
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    let answers = answers(&output);
    assert_eq!(answers.len(), 2);
    assert_eq!(answers[0]["line"].as_str().unwrap().len(), 64 * 1024);
    assert_eq!(answers[1]["pattern"], "disk_full");
}

#[test]
fn a_users_file_adds_and_a_wrong_one_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("mine.toml");
    let named = file.to_str().unwrap();
    let pattern = "version = 1\n[[pattern]]\nname = \"licence_expired\"\ndescription = \"d\"\nremedy = \"alert\"\n\
        [[pattern.rule]]\nname = \"own\"\nregex = ['licence of (?P<product>\\w+) expired']\n";
    std::fs::write(&file, pattern).unwrap();
    let answers = answers(&run(&["--patterns", named], b"the licence of acme expired\n"));
    assert_eq!(answers[0]["pattern"], "licence_expired");
    assert_eq!(answers[0]["evidence"]["product"], "acme");

    std::fs::write(&file, pattern.replace("alert", "reboot")).unwrap();
    let refused = run(&["--patterns", named], b"");
    assert_eq!(refused.status.code(), Some(78), "{}", text(&refused));
    let said = text(&refused);
    assert!(said.contains("pattern `licence_expired`, remedy: `reboot` is no remedy; use one of restart,"), "{said}");
    assert!(said.contains(named), "{said}");
    let absent = run(&["--patterns", "/nonexistent.toml"], b"");
    assert!(text(&absent).contains("/nonexistent.toml"), "{}", text(&absent));
}

#[test]
fn the_measured_lines_are_all_right_and_a_wrong_label_is_told() {
    let table = concat!(env!("CARGO_MANIFEST_DIR"), "/../healer/tests/data/measured-lines.tsv");
    let output = run(&["--tsv", table], b"");
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let said = text(&output);
    let all = said.lines().find(|line| line.starts_with("all ")).unwrap();
    assert_eq!(all.matches("100.0 %").count(), 2, "{said}");

    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("lines.tsv");
    std::fs::write(&file, "oom_kill\tx\tdatabase is locked\tmine\nneg:disk_full\tx\tENOSPC\tmine\n").unwrap();
    let output = run(&["--json", "--tsv", file.to_str().unwrap()], b"");
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["recall"], 0.0);
    assert_eq!(report["precision"], 0.0);
    assert_eq!(report["mistakes"][0]["taken_for"][0], "database_locked");
    assert_eq!(report["patterns"]["disk_full"]["mistaken"], 1);
}
