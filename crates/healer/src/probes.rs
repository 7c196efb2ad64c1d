//! Asking a unit whether it works.

use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use lares_config::HealthProbe;
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::time::timeout;

/// Longest text kept of why a probe failed, in characters.
const WHY: usize = 300;

/// Asks units.
#[derive(Debug, Clone)]
pub(crate) struct Prober {
    http: reqwest::Client,
}

impl Prober {
    /// Fails only where TLS cannot be set up.
    pub(crate) fn new() -> Result<Self, reqwest::Error> {
        // A redirect is an answer. Each probe opens a connection, as a new client would have to.
        let http = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .pool_max_idle_per_host(0)
            .user_agent("lares-healer")
            .build()?;
        Ok(Self { http })
    }

    /// Asks once. `moved`: the port that the unit was moved to, instead of the configured one.
    pub(crate) async fn ask(&self, probe: &HealthProbe, moved: Option<u16>) -> Result<(), String> {
        let asked = async {
            if let Some(url) = &probe.http {
                self.http(url, moved).await
            } else if let Some(address) = probe.tcp {
                tcp(address, moved).await
            } else {
                command(&probe.command).await
            }
        };
        let answer = timeout(probe.timeout, asked).await;
        let answer = answer.unwrap_or_else(|_| Err(format!("no answer within {}", seconds(probe.timeout))));
        answer.map_err(|why| why.chars().take(WHY).collect())
    }

    async fn http(&self, url: &str, moved: Option<u16>) -> Result<(), String> {
        let mut url: reqwest::Url = url.parse().map_err(|error| format!("{url}: {error}"))?;
        if moved.is_some() {
            // Only addresses without a port to set refuse it, and those are no http URLs.
            let _ = url.set_port(moved);
        }
        match self.http.get(url.clone()).send().await {
            Ok(answer) if answer.status().as_u16() < 400 => Ok(()),
            Ok(answer) => Err(format!("{url} answers {}", answer.status())),
            Err(error) => Err(lares_gate::chain(&error)),
        }
    }
}

/// Whether there is something to ask.
pub(crate) fn is_set(probe: &HealthProbe) -> bool {
    probe.http.is_some() || probe.tcp.is_some() || !probe.command.is_empty()
}

async fn tcp(mut address: SocketAddr, moved: Option<u16>) -> Result<(), String> {
    if let Some(port) = moved {
        address.set_port(port);
    }
    TcpStream::connect(address).await.map(drop).map_err(|error| format!("{address}: {error}"))
}

async fn command(command: &[String]) -> Result<(), String> {
    let Some((program, arguments)) = command.split_first() else { return Ok(()) };
    let child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .status();
    match child.await {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{program}: {status}")),
        Err(error) => Err(format!("{program}: {error}")),
    }
}

fn seconds(time: Duration) -> String {
    format!("{} s", time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    async fn server(answer: &'static str) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.read(&mut [0; 1024]).await;
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        port
    }

    fn http(port: u16) -> HealthProbe {
        HealthProbe { http: Some(format!("http://127.0.0.1:{port}/health")), ..HealthProbe::default() }
    }

    #[tokio::test]
    async fn statuses_below_400_are_well_and_a_moved_unit_is_asked_where_it_is() {
        let prober = Prober::new().unwrap();
        let good = server("HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n").await;
        let bad = server("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n").await;
        assert_eq!(prober.ask(&http(good), None).await, Ok(()));
        let why = prober.ask(&http(bad), None).await.unwrap_err();
        assert!(why.ends_with("/health answers 503 Service Unavailable"), "{why}");
        assert_eq!(prober.ask(&http(bad), Some(good)).await, Ok(()));
    }

    #[tokio::test]
    async fn one_that_does_not_answer_in_time_is_not_well() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let silent = HealthProbe { timeout: Duration::from_millis(100), ..http(listener.local_addr().unwrap().port()) };
        assert_eq!(Prober::new().unwrap().ask(&silent, None).await.unwrap_err(), "no answer within 0.1 s");
        let tcp = HealthProbe { tcp: Some(listener.local_addr().unwrap()), ..HealthProbe::default() };
        assert_eq!(Prober::new().unwrap().ask(&tcp, None).await, Ok(()));
    }

    #[tokio::test]
    async fn commands_count_by_their_exit_status() {
        let run = |script: &str| HealthProbe {
            command: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
            ..HealthProbe::default()
        };
        let prober = Prober::new().unwrap();
        assert_eq!(prober.ask(&run("exit 0"), None).await, Ok(()));
        assert_eq!(prober.ask(&run("exit 3"), None).await.unwrap_err(), "/bin/sh: exit status: 3");
    }
}
