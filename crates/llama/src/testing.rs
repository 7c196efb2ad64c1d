//! What tests with a real llama-server need.
#![allow(clippy::unwrap_used, clippy::missing_panics_doc)]

use std::path::Path;
use std::process::Stdio;

use tokio::net::TcpSocket;
use tokio::process::Command;

/// A port on which nobody listens until the caller does. It stays bound as long as the tests run: the system gives it
/// to nobody who asks for any port, while `SO_REUSEADDR`, which llama-server and Rust's listeners set, lets in who asks
/// for this one.
pub fn reserved_port() -> u16 {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let port = socket.local_addr().unwrap().port();
    std::mem::forget(socket);
    port
}

/// llama-server, to be given its options: silent, and killed with its handle.
pub fn llama_server(binary: &Path) -> Command {
    let mut command = Command::new(binary);
    command
        // As the product starts it: threads that spin starve the tests beside them.
        .env("OMP_WAIT_POLICY", "passive")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    command
}
