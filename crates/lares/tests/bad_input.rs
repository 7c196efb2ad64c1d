//! Bad input, and a full disk: each gives one clear error that says what to do, and loses nothing.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::path::Path;
use std::process::{Command, Output};

use support::{EXAMPLE, Stack, lares, real_parts, repository, state_dir, text};

fn with_config(state: &Path, toml: &str, arguments: &[&str]) -> Output {
    let file = state.join("lares.toml");
    std::fs::write(&file, toml).unwrap();
    lares().arg("--config").arg(&file).arg("--state-dir").arg(state).args(arguments).output().unwrap()
}

#[track_caller]
fn refused(output: &Output, code: i32, says: &[&str]) {
    let said = text(output);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert_eq!(said.matches("error").count().min(1), 1, "{said}");
    assert!(!said.contains("panicked"), "{said}");
    for needle in says {
        assert!(said.contains(needle), "{needle:?} is not in: {said}");
    }
}

#[test]
fn a_configuration_that_is_wrong_is_refused_with_code_78() {
    let state = state_dir();
    refused(&with_config(state.path(), "[ralph\n", &["up"]), 78, &["not valid TOML", "line 1"]);
    refused(
        &with_config(state.path(), "[ralph]\nworkers = \"two\"\n", &["config", "check"]),
        78,
        &["ralph.workers", "expected a whole number", "lares.toml"],
    );
    refused(&with_config(state.path(), "[ralph]\nwrokers = 2\n", &["up"]), 78, &["did you mean `workers`"]);
    let absent = lares().args(["--config", "/nonexistent/lares.toml", "config", "check"]).output().unwrap();
    refused(&absent, 78, &["/nonexistent/lares.toml"]);
}

#[test]
fn a_model_that_is_not_there_is_named_with_what_is() {
    let state = state_dir();
    let server = fake_server(state.path());
    let base = Stack::base(&server);
    let path = format!("{base}[models.coder]\npath = \"{}/none.gguf\"\n", state.path().display());
    refused(&with_config(state.path(), &path, &["up"]), 1, &["models.coder", "none.gguf"]);
    let source = format!("{base}[models.coder]\nsource = \"qwen2.5-coder-0.5b-instrukt\"\n");
    refused(
        &with_config(state.path(), &source, &["up"]),
        1,
        &["models.coder.source", "did you mean", "qwen2.5-coder-0.5b-instruct"],
    );
}

#[test]
fn a_file_with_another_hash_is_not_used() {
    let state = state_dir();
    let served = serve_once(b"not the model");
    let toml = format!(
        "{}[models.coder]\nurl = \"http://{served}/m.gguf\"\nsha256 = \"{}\"\n",
        Stack::base(&fake_server(state.path())),
        "0".repeat(64)
    );
    let output = with_config(state.path(), &toml, &["up"]);
    refused(&output, 1, &["wrong hash", &"0".repeat(64), "removed"]);
    let left: Vec<_> = std::fs::read_dir(state.path().join("models"))
        .unwrap()
        .flatten()
        .map(|entry| entry.file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".gguf"))
        .collect();
    assert_eq!(left, Vec::<String>::new(), "nothing that failed its hash is in place");
}

#[test]
fn a_truncated_model_is_refused_before_anything_starts() {
    let Some((model, server, _turn)) = real_parts("truncated-gguf") else { return };
    let state = state_dir();
    let cut = state.path().join("cut.gguf");
    let head = Command::new("head").args(["-c", "100000000"]).arg(&model).output().unwrap();
    std::fs::write(&cut, &head.stdout).unwrap();
    let toml = format!("{}{}", Stack::base(&server), Stack::model("coder", &cut, ""));
    refused(&with_config(state.path(), &toml, &["up"]), 1, &["cut.gguf", "100000000"]);
    assert!(!state.path().join("postgres").exists(), "nothing was started");
}

#[test]
fn a_model_that_does_not_fit_is_refused_with_the_numbers() {
    let Some((model, server, _turn)) = real_parts("does-not-fit") else { return };
    let state = state_dir();
    let base = Stack::base(&server).replace("[llama]\n", "[llama]\nmemory_budget = \"300 MiB\"\n");
    let toml = format!("{base}{}", Stack::model("coder", &model, "context_size = 32768\nslots = 4"));
    refused(&with_config(state.path(), &toml, &["up"]), 1, &["coder", "memory_budget"]);
}

#[test]
fn a_full_disk_fails_the_start_or_pauses_the_work_and_loses_no_task() {
    let Some((model, server, _turn)) = real_parts("disk-full") else { return };
    let mount = state_dir();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=400m,mode=755", "tmpfs"])
        .arg(mount.path())
        .output()
        .unwrap();
    if !mounted.status.success() {
        eprintln!("SKIP disk-full: a tmpfs cannot be mounted here: {}", text(&mounted).trim());
        return;
    }
    let _unmount = Unmount(mount.path());
    let toml = format!("{}{}", Stack::base(&server), Stack::model("coder", &model, "context_size = 2048"));
    let mut stack = Stack::up(mount.path(), &toml);
    let elsewhere = state_dir();
    let repo = elsewhere.path().join("repo");
    repository(&repo, &EXAMPLE);
    let ballast = mount.path().join("ballast");
    fill(&ballast);
    let submitted = stack.run(&[
        "task",
        "submit",
        "--detach",
        "--repo",
        repo.to_str().unwrap(),
        "--check",
        "python3 -m unittest",
        "make the tests pass",
    ]);
    // Either it is refused with a reason, or it is accepted and then it must not be lost.
    let accepted =
        submitted.status.success().then(|| String::from_utf8(submitted.stdout.clone()).unwrap().trim().to_owned());
    if accepted.is_none() {
        assert!(!text(&submitted).contains("panicked"), "{}", text(&submitted));
    }
    std::thread::sleep(std::time::Duration::from_secs(3));
    std::fs::remove_file(&ballast).unwrap();
    stack.wait_ready(std::time::Duration::from_secs(90));
    if let Some(id) = accepted {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(300);
        loop {
            let output = stack.run(&["task", "show", &id, "--json"]);
            if output.status.success() {
                let task: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
                if ["succeeded", "failed"].contains(&task["state"].as_str().unwrap()) {
                    println!("after the disk was full the task {}: {}", task["state"], task["reason"]);
                    break;
                }
            }
            assert!(std::time::Instant::now() < deadline, "{}", text(&output));
            std::thread::sleep(std::time::Duration::from_millis(500));
        }
    } else {
        println!("refused while the disk was full: {}", text(&submitted).trim());
    }
    let (status, _) = stack.interrupt();
    assert!(status.success(), "{}", stack.log());
}

struct Unmount<'a>(&'a Path);

impl Drop for Unmount<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0).status();
    }
}

/// Writes until the disk is full.
fn fill(path: &Path) {
    let output = Command::new("dd")
        .args(["if=/dev/zero", "bs=1M", "status=none"])
        .arg(format!("of={}", path.display()))
        .output()
        .unwrap();
    assert!(!output.status.success(), "the disk never got full");
}

/// Something that can be found as a `llama-server`, for tests that end before it is needed.
fn fake_server(directory: &Path) -> std::path::PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let path = directory.join("llama-server");
    std::fs::write(
        &path,
        "#!/bin/sh\ncase $1 in --version) echo 'version: 1 (abc)';; *) printf -- '-m, --model FNAME  model\\n-c, --ctx-size N  context\\n--port PORT  port\\n--host HOST  host\\n';; esac\n",
    )
    .unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// An HTTP server that answers every request with the same bytes, for as long as the test runs.
fn serve_once(body: &'static [u8]) -> std::net::SocketAddr {
    use std::io::{Read, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.read(&mut [0; 4096]);
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
            let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
        }
    });
    address
}
