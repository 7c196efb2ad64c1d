//! Attempts to get out of a run, each of which has to fail while the same thing inside works.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;

use common::Place;
use lares_agents::exec::ExecError;
use lares_agents::sandbox::{Policy, Reach};
use lares_config::{Network, SandboxMode};

#[tokio::test]
async fn nothing_outside_the_worktree_is_written() {
    let outside = tempfile::tempdir().unwrap();
    fs::set_permissions(outside.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let place = Place::new();
    let to = outside.path().display();
    symlink(outside.path(), place.path().join("way")).unwrap();
    let output = place
        .run(&format!(
            "echo x > {to}/a; echo x > way/b; mkdir {to}/c; ln -s {to} again; echo x > again/d; ln {to}/e f; \
             cp /bin/true /usr/bin/evil; echo x > /etc/evil; echo x > /evil; \
             python3 -c 'import os; os.rename(\"inside\", \"{to}/g\")'; \
             echo fine > inside && mkdir -p sub && echo fine > sub/file && cat inside sub/file"
        ))
        .await;
    assert!(output.success(), "{}", output.text());
    assert!(output.text().ends_with("fine\nfine\n"), "{}", output.text());
    assert!(fs::read_dir(outside.path()).unwrap().next().is_none());
    for evil in ["/usr/bin/evil", "/etc/evil", "/evil"] {
        assert!(!std::path::Path::new(evil).exists(), "{evil} was made");
    }
}

#[tokio::test]
async fn secrets_outside_are_not_read() {
    let state = tempfile::tempdir().unwrap();
    fs::write(state.path().join("admin.key"), "lares_secret").unwrap();
    let place = Place::new();
    symlink(state.path().join("admin.key"), place.path().join("link")).unwrap();
    let key = state.path().join("admin.key");
    let output = place
        .run(&format!(
            "cat {key}; cat link; cat ../*/admin.key; ls {dir}; cat /proc/{pid}/environ; cat /proc/{pid}/root{key}; \
             cat /etc/shadow; cat /etc/ssh/ssh_host_*_key; cat /etc/passwd | head -1 > /dev/null && echo public",
            key = key.display(),
            dir = state.path().display(),
            pid = std::process::id(),
        ))
        .await;
    let text = output.text();
    assert!(!text.contains("lares_secret") && !text.contains("PRIVATE KEY") && !text.contains("root:"), "{text}");
    assert!(!text.lines().any(|line| line == "admin.key"), "{text}");
    assert!(text.contains("public"), "{text}");
}

#[tokio::test]
async fn what_is_hidden_stays_so_below_a_readable_directory_and_above_the_worktree() {
    let state = tempfile::tempdir().unwrap();
    let root = state.path();
    fs::create_dir_all(root.join("keys")).unwrap();
    fs::create_dir_all(root.join("worktrees/a")).unwrap();
    fs::create_dir_all(root.join("repo.git")).unwrap();
    fs::write(root.join("keys/admin.key"), "lares_secret").unwrap();
    fs::write(root.join("repo.git/HEAD"), "ref").unwrap();
    let mut place = Place::new();
    let worktree = root.join("worktrees/a");
    place.policy = Policy::for_check(&place.sandbox, &worktree).read(root).hide(root.join("keys"));
    place.policy.write.push(place.path().to_owned());
    let line = format!(
        "cat {0}/repo.git/HEAD; cat {0}/keys/admin.key; echo ok > {0}/worktrees/a/x; cat {0}/worktrees/a/x",
        root.display()
    );
    let text = place.run(&line).await.text();
    assert!(text.starts_with("ref") && text.ends_with("ok\n") && !text.contains("lares_secret"), "{text}");
    // The whole state directory is hidden, the worktree in it is not.
    place.policy = Policy::for_check(&place.sandbox, &worktree).hide(root);
    place.policy.write.push(place.path().to_owned());
    let text = place.run(&line).await.text();
    assert!(!text.contains("lares_secret") && !text.contains("ref") && text.ends_with("ok\n"), "{text}");
}

#[tokio::test]
async fn what_may_be_read_below_the_temporary_directory_is_not_written() {
    let outside = tempfile::tempdir_in("/tmp").unwrap();
    fs::create_dir(outside.path().join("cache")).unwrap();
    fs::write(outside.path().join("HEAD"), "ref").unwrap();
    let mut place = Place::new();
    let cache = outside.path().join("cache");
    place.policy = Policy::for_check(&place.sandbox, place.path()).read(outside.path());
    place.policy.write.push(cache);
    let to = outside.path().display();
    let text = place
        .run(&format!("echo evil > {to}/HEAD; rm {to}/HEAD; mkdir {to}/hooks; echo fine > {to}/cache/x; cat {to}/HEAD"))
        .await
        .text();
    assert!(text.ends_with("ref"), "{text}");
    assert_eq!(fs::read_to_string(outside.path().join("HEAD")).unwrap(), "ref");
    assert!(!outside.path().join("hooks").exists());
    assert_eq!(fs::read_to_string(outside.path().join("cache/x")).unwrap(), "fine\n");
}

#[tokio::test]
async fn no_network_is_reached() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    udp.set_read_timeout(Some(std::time::Duration::from_millis(300))).unwrap();
    let udp_port = udp.local_addr().unwrap().port();
    let sockets = tempfile::tempdir().unwrap();
    let socket = sockets.path().join("db.sock");
    let _database = UnixListener::bind(&socket).unwrap();
    let script = format!(
        r#"
import socket
def attempt(name, family, kind, address, data=None):
    try:
        s = socket.socket(family, kind)
        s.settimeout(2)
        if data: s.sendto(data, address)
        else: s.connect(address)
        print(name, "reached")
    except OSError as error:
        print(name, "refused", error.errno)
attempt("tcp", socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", {port}))
attempt("udp", socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", {udp_port}), b"x")
attempt("unix", socket.AF_UNIX, socket.SOCK_STREAM, "{socket}")
try:
    s = socket.socket(); s.bind(("127.0.0.1", 0)); s.listen(); print("listens")
except OSError as error:
    print("listening refused")
a, b = socket.socketpair(); a.send(b"x"); print("pair", b.recv(1))
"#,
        socket = socket.display()
    );
    let place = Place::new();
    fs::write(place.path().join("net.py"), script).unwrap();
    let output = place.run("python3 net.py").await;
    let text = output.text();
    assert!(text.contains("tcp refused") && text.contains("listening refused") && text.contains("pair b'x'"), "{text}");
    if output.confinement.namespaces {
        assert!(text.contains("unix refused"), "{text}");
        assert!(udp.recv(&mut [0; 8]).is_err(), "a datagram got out");
    } else {
        eprintln!("SKIP part of no_network_is_reached: this kernel gives no user namespaces, so UDP is open");
    }
}

#[tokio::test]
async fn an_agent_reaches_the_coordinator_and_no_other_port() {
    let (coordinator, other) = (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
    let (open, closed) = (coordinator.local_addr().unwrap().port(), other.local_addr().unwrap().port());
    let mut place = Place::new();
    place.policy = Policy::for_agent(&place.sandbox, place.path(), open);
    let line = format!(
        "for p in {open} {closed}; do python3 -c \"import socket; socket.create_connection(('127.0.0.1', $p), 2)\" 2>/dev/null && echo $p open || echo $p closed; done"
    );
    let output = place.run(&line).await;
    assert_eq!(output.text(), format!("{open} open\n{closed} closed\n"));
}

#[tokio::test]
async fn a_check_may_have_the_machines_network_when_that_is_configured() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut place = Place::new();
    place.sandbox.check_network = Network::Host;
    place.policy = Policy::for_check(&place.sandbox, place.path());
    assert_eq!(place.policy.reach, Reach::Host);
    let line = format!("python3 -c \"import socket; socket.create_connection(('127.0.0.1', {port}), 2)\"");
    let output = place.run(&line).await;
    assert!(output.success(), "{}", output.text());
}

#[tokio::test]
async fn processes_outside_get_no_signal() {
    let mut outsider = std::process::Command::new("sleep").arg("60").spawn().unwrap();
    let place = Place::new();
    let line = format!("kill -9 {}; kill -9 $PPID; kill -9 {}; echo alive", outsider.id(), std::process::id());
    let output = place.run(&line).await;
    let still_there = outsider.try_wait().unwrap().is_none();
    outsider.kill().unwrap();
    outsider.wait().unwrap();
    assert!(still_there, "a process outside was killed");
    assert!(output.text().ends_with("alive\n"), "{}", output.text());
}

#[tokio::test]
async fn root_inside_has_no_power_over_the_machine() {
    let place = Place::new();
    let output = place
        .run("mount -t tmpfs x . ; hostname evil; chroot / true; mknod dev b 7 0; date -s 2001-01-01; cat /proc/1/environ; echo 1 > /proc/sys/kernel/sysrq; echo end")
        .await;
    let text = output.text();
    assert!(text.ends_with("end\n") && !place.path().join("dev").exists(), "{text}");
    assert_ne!(fs::read_to_string("/proc/sys/kernel/hostname").unwrap().trim(), "evil");
    assert!(std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() > 1_700_000_000);
}

#[tokio::test]
async fn without_confinement_the_limits_and_the_guard_stay() {
    let mut place = Place::new();
    place.policy.mode = SandboxMode::Off;
    let outside = tempfile::tempdir().unwrap();
    let output = place.run(&format!("echo x > {0}/a && cat {0}/a; ulimit -c", outside.path().display())).await;
    assert_eq!(output.text(), "x\n0\n");
    assert_eq!(output.confinement.landlock, 0);
    let missing: Result<_, ExecError> = {
        place.policy.scratch = Some("/no/such/directory".into());
        place.try_run("true").await
    };
    assert!(matches!(missing, Err(ExecError::Scratch { .. })));
}

#[tokio::test]
async fn this_machine_confines_with_landlock() {
    let place = Place::new();
    let output = place.run("true").await;
    assert!(output.success());
    assert!(output.confinement.landlock >= 1, "{:?}", output.confinement);
    eprintln!("confined by {:?}, started and ended in {:?}", output.confinement, output.duration);
}
