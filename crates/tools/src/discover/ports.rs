//! Loopback ports that listen and answer MCP, within the ranges that the configuration allows.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use lares_config::ToolDiscovery;
use tokio::time::{Instant, sleep_until, timeout};
use url::Url;

use super::{Around, Listening, Sighting, endpoint};
use crate::api::Source;
use crate::port::Transport;

/// Ports asked at the same time.
const AT_ONCE: usize = 16;
/// Longest time for the list of sockets.
const LISTING: Duration = Duration::from_millis(800);
/// Rounds for which an answer, yes or no, is believed. It is forgotten at once when the socket is another one.
const BELIEVED: u64 = 10;
/// Most ports looked at.
const MOST: usize = 1024;

/// What ports answered, kept from round to round: only sockets that still listen, at most 1024.
#[derive(Debug, Default)]
pub struct Asked(Mutex<Answers>);

#[derive(Debug, Default)]
struct Answers {
    round: u64,
    known: HashMap<Listening, Answer>,
}

#[derive(Debug, Clone)]
struct Answer {
    url: Option<String>,
    until: u64,
}

/// What answers on the allowed ports, and what was wrong. `known` are ports of servers that are found already.
pub(super) async fn look(
    config: &ToolDiscovery,
    around: &dyn Around,
    asked: &Asked,
    known: &BTreeSet<u16>,
    patience: Duration,
) -> (Vec<Sighting>, Vec<String>) {
    let mut problems = Vec::new();
    let mut ranges = Vec::new();
    for text in &config.ports {
        match lares_config::ports::parse(text) {
            Ok(range) => ranges.push(range),
            Err(error) => problems.push(format!("tools.discovery.ports: {error}")),
        }
    }
    if ranges.is_empty() {
        return (Vec::new(), problems);
    }
    let listening = match timeout(LISTING, around.listening()).await {
        Ok(Ok(listening)) => listening,
        Ok(Err(problem)) => {
            problems.push(problem);
            return (Vec::new(), problems);
        }
        Err(_) => {
            problems.push("the list of listening ports takes too long".to_owned());
            return (Vec::new(), problems);
        }
    };
    let (chosen, beyond) = choose(&listening, &ranges, known);
    if beyond > 0 {
        problems.push(format!("{beyond} ports more than the {MOST} that are looked at were left out"));
    }
    let unknown = asked.begin(&chosen);
    let mut asking = stream::iter(unknown)
        .map(|port| async move {
            for address in addresses(port.address) {
                if let Some(path) = around.speaks_mcp(address).await {
                    return (port, Some(format!("http://{address}{path}")));
                }
            }
            (port, None)
        })
        .buffer_unordered(AT_ONCE)
        .take_until(Box::pin(sleep_until(Instant::now() + patience)));
    while let Some((port, url)) = asking.next().await {
        asked.answered(port, url);
    }
    if asking.take_result().is_some() {
        problems.push("not all ports could be asked in time; the next round goes on with the others".to_owned());
    }
    let sightings = asked.answers(&chosen).filter_map(|(port, url)| {
        let url = Url::parse(&url).ok()?;
        Some(Sighting {
            // What a server calls itself is foreign text and may change; its port does neither.
            wanted: format!("port-{}", port.address.port()),
            source: Source::Port,
            origin: format!("port {}", port.address.port()),
            transport: Transport::Http(endpoint(&url, BTreeMap::new())),
            needs: Vec::new(),
        })
    });
    (sightings.collect(), problems)
}

impl Asked {
    /// Begins a round: forgets sockets that are gone and answers that are old; gives those to ask.
    fn begin(&self, chosen: &[Listening]) -> Vec<Listening> {
        let mut answers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        answers.round += 1;
        let round = answers.round;
        let here: BTreeSet<_> = chosen.iter().map(|port| (port.address, port.socket)).collect();
        answers.known.retain(|port, answer| answer.until > round && here.contains(&(port.address, port.socket)));
        chosen.iter().filter(|port| !answers.known.contains_key(port)).copied().collect()
    }

    fn answered(&self, port: Listening, url: Option<String>) {
        let mut answers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let until = answers.round + BELIEVED;
        answers.known.insert(port, Answer { url, until });
    }

    fn answers(&self, chosen: &[Listening]) -> impl Iterator<Item = (Listening, String)> {
        let answers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let url = |port: &Listening| Some((*port, answers.known.get(port)?.url.clone()?));
        chosen.iter().filter_map(url).collect::<Vec<_>>().into_iter()
    }
}

/// One socket a port, by port, and how many are too many.
fn choose(listening: &[Listening], ranges: &[RangeInclusive<u16>], known: &BTreeSet<u16>) -> (Vec<Listening>, usize) {
    let mut chosen: BTreeMap<u16, Listening> = BTreeMap::new();
    for socket in listening {
        let port = socket.address.port();
        let allowed = ranges.iter().any(|range| range.contains(&port)) && !known.contains(&port);
        let address = socket.address.ip();
        if !allowed || !(address.is_loopback() || address.is_unspecified()) {
            continue;
        }
        // Programs listen on both families at once; the older one is spoken by all clients.
        let better = |other: &Listening| socket.address.is_ipv4() && other.address.is_ipv6();
        if chosen.get(&port).is_none_or(better) {
            chosen.insert(port, *socket);
        }
    }
    let beyond = chosen.len().saturating_sub(MOST);
    (chosen.into_values().take(MOST).collect(), beyond)
}

/// Where a socket can be reached from here.
fn addresses(socket: SocketAddr) -> Vec<SocketAddr> {
    let at = |address: IpAddr| SocketAddr::new(address, socket.port());
    match socket.ip() {
        IpAddr::V4(address) if address.is_unspecified() => vec![at(Ipv4Addr::LOCALHOST.into())],
        // Open for IPv4 too unless it says otherwise, which nobody can see from here.
        IpAddr::V6(address) if address.is_unspecified() => {
            vec![at(Ipv4Addr::LOCALHOST.into()), at(Ipv6Addr::LOCALHOST.into())]
        }
        address => vec![at(address)],
    }
}

/// The listening sockets in the text of `/proc/net/tcp` or `/proc/net/tcp6` (proc_net(5)).
pub(super) fn listening(table: &str) -> Vec<Listening> {
    const LISTEN: &str = "0A";
    let socket = |line: &str| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let &[_, local, _, LISTEN, _, _, _, _, _, socket, ..] = fields.as_slice() else { return None };
        let (address, port) = local.split_once(':')?;
        let address = match address.len() {
            8 => IpAddr::from(u32::from_str_radix(address, 16).ok()?.to_ne_bytes()),
            32 if address.is_ascii() => {
                let mut bytes = [0; 16];
                for (place, word) in bytes.chunks_exact_mut(4).enumerate() {
                    let digits = address.get(place * 8..place * 8 + 8)?;
                    word.copy_from_slice(&u32::from_str_radix(digits, 16).ok()?.to_ne_bytes());
                }
                IpAddr::from(bytes).to_canonical()
            }
            _ => return None,
        };
        let address = SocketAddr::new(address, u16::from_str_radix(port, 16).ok()?);
        Some(Listening { address, socket: socket.parse().ok()? })
    };
    table.lines().filter_map(socket).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn socket(address: &str, socket: u64) -> Listening {
        Listening { address: address.parse().unwrap(), socket }
    }

    #[cfg(target_endian = "little")]
    #[test]
    fn the_kernels_table_is_read() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F40 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 4711 1 0000000000000000 100 0 0 10 0
   1: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4712 1 0000000000000000 100 0 0 10 0
   2: 0100007F:1F40 0100007F:9999 01 00000000:00000000 00:00000000 00000000  1000        0 4713 1 0000000000000000 20 4 30 10 -1
   3: garbage
";
        assert_eq!(listening(table), [socket("127.0.0.1:8000", 4711), socket("0.0.0.0:80", 4712)]);
        let six = "   0: 00000000000000000000000001000000:1F41 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 1 1\n   1: 00000000000000000000000000000000:1F42 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 2 1\n   2: 0000000000000000FFFF00000100007F:1F43 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 3 1\n";
        assert_eq!(listening(six), [socket("[::1]:8001", 1), socket("[::]:8002", 2), socket("127.0.0.1:8003", 3)]);
    }

    #[test]
    fn only_allowed_ports_that_are_open_to_this_machine_are_chosen_once_each() {
        let sockets = [
            socket("[::]:8000", 1),
            socket("0.0.0.0:8000", 2),
            socket("192.168.1.5:8001", 3),
            socket("127.0.0.1:8002", 4),
            socket("127.0.0.1:9000", 5),
            socket("[::1]:8003", 6),
        ];
        let (chosen, beyond) = choose(&sockets, &[8000..=8010], &BTreeSet::from([8002]));
        assert_eq!(chosen, [socket("0.0.0.0:8000", 2), socket("[::1]:8003", 6)]);
        assert_eq!(beyond, 0);
    }

    #[test]
    fn an_answer_is_believed_for_ten_rounds_or_until_the_socket_is_another_one() {
        let asked = Asked::default();
        let port = socket("127.0.0.1:8000", 1);
        assert_eq!(asked.begin(&[port]), [port]);
        asked.answered(port, None);
        for round in 1..BELIEVED {
            assert_eq!(asked.begin(&[port]), [], "round {round}");
        }
        assert_eq!(asked.begin(&[port]), [port]);
        asked.answered(port, None);
        let again = socket("127.0.0.1:8000", 2);
        assert_eq!(asked.begin(&[again]), [again]);
        assert!(asked.0.lock().unwrap().known.is_empty(), "what is gone is forgotten");
    }

    proptest! {
        #[test]
        fn no_table_makes_it_panic(table in "[ 0-9A-Fa-f:é\n]{0,200}") {
            listening(&table);
        }
    }
}
