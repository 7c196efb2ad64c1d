//! Serves the gateway over the fixture of the tests, for the conformance suite of MCP:
//!
//! ```text
//! cargo run -p lares-tools --example gateway -- 127.0.0.1:8799 list
//! npx @modelcontextprotocol/conformance server --url http://127.0.0.1:8799/mcp --requirements 2026-07-28
//! ```
//!
//! The surface is the house's own, but for keys: whoever reaches it may use it.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use lares_config::GatewayMode;
use lares_tools::gateway::{Gateway, GatewaySettings};
use tokio_util::sync::CancellationToken;

#[path = "../tests/gateway_support/mod.rs"]
mod gateway_support;

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let listen = arguments.next().unwrap_or_else(|| "127.0.0.1:8799".to_owned());
    let mode = match arguments.next().as_deref() {
        Some("search") => GatewayMode::Search,
        Some("both") => GatewayMode::Both,
        _ => GatewayMode::List,
    };
    let fixture = gateway_support::Fixture::new(mode, false);
    let settings = GatewaySettings { max_sessions: 256, session_idle: Duration::from_secs(3600) };
    let gateway = Gateway::new(fixture, settings, CancellationToken::new());
    let listener = tokio::net::TcpListener::bind(&listen).await?;
    println!("http://{}/mcp", listener.local_addr()?);
    axum::serve(listener, gateway_support::Fixture::router(&gateway)).await
}
