//! Which addresses a tool server on HTTP may have. Names are resolved here, and what was checked is what is connected to,
//! so a name that changes its mind between the check and the connection gains nothing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use http_client::Url;
use http_client::dns::{Addrs, Name, Resolve, Resolving};

/// Longest wait for a name to be resolved.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a URL or an address is not connected to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub(super) enum Refused {
    #[error("its URL cannot be read: {0}")]
    Url(String),
    #[error("its URL must begin with http:// or https://")]
    Scheme,
    #[error("its URL holds a user name or password; put it into a file and name that in `header_files`")]
    Credentials,
    #[error("{0} is on this machine, and nobody allowed that; write its URL into `tools.servers` or approve it")]
    Loopback(IpAddr),
    #[error(
        "{0} is {1}; such an address is connected to only if the configured URL names the address itself, not a host name"
    )]
    NotPublic(IpAddr, &'static str),
    #[error(
        "{0} is link-local, where clouds hand out the credentials of a machine; such an address is never connected to"
    )]
    Never(IpAddr),
    #[error("the name {0} cannot be resolved: {1}")]
    Unknown(String, String),
}

/// What kind of address it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Public,
    Loopback,
    /// Where clouds tell a machine who it is, and no tool server lives.
    LinkLocal,
    Other(&'static str),
}

/// Whether `address` may be connected to. `named`: it stands in the URL itself. `allowed`: a person allowed this URL.
pub(super) fn check(address: IpAddr, named: bool, allowed: bool) -> Result<(), Refused> {
    match kind(address) {
        Kind::Public => Ok(()),
        Kind::Loopback if allowed => Ok(()),
        Kind::Loopback => Err(Refused::Loopback(address)),
        Kind::LinkLocal => Err(Refused::Never(address)),
        Kind::Other(_) if named && allowed => Ok(()),
        Kind::Other(what) => Err(Refused::NotPublic(address, what)),
    }
}

/// The URL of a server, if it can be one; an address in it is checked.
pub(super) fn url(text: &str, allowed: bool) -> Result<Url, Refused> {
    let url = Url::parse(text).map_err(|error| Refused::Url(error.to_string()))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(Refused::Scheme);
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(Refused::Credentials);
    }
    let host = url.host_str().ok_or_else(|| Refused::Url("it names no host".to_owned()))?;
    // The URL standard has turned every way to write an IPv4 address into the usual one.
    if let Ok(address) = host.trim_start_matches('[').trim_end_matches(']').parse() {
        check(address, true, allowed)?;
    }
    Ok(url)
}

fn kind(address: IpAddr) -> Kind {
    match address {
        IpAddr::V4(address) => kind_v4(address),
        IpAddr::V6(address) => match carried(address) {
            Some(carried) => kind_v4(carried),
            None => kind_v6(address),
        },
    }
}

/// Source: IANA's registry of special-purpose IPv4 addresses (RFC 6890 and what updates it).
fn kind_v4(address: Ipv4Addr) -> Kind {
    match address.octets() {
        [127, ..] => Kind::Loopback,
        [0, ..] => Kind::Other("unspecified"),
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] => Kind::Other("private"),
        [100, 64..=127, ..] => Kind::Other("a carrier's (RFC 6598)"),
        [169, 254, ..] => Kind::LinkLocal,
        [192, 0, 0 | 2, _] | [192, 88, 99, _] | [198, 18 | 19, ..] | [198, 51, 100, _] | [203, 0, 113, _] => {
            Kind::Other("reserved")
        }
        [224..=239, ..] => Kind::Other("multicast"),
        [240..=255, ..] => Kind::Other("reserved"),
        _ => Kind::Public,
    }
}

/// Source: IANA's registry of IPv6 address space; only 2000::/3 is given out to be reached.
fn kind_v6(address: Ipv6Addr) -> Kind {
    let [first, second, ..] = address.segments();
    match (first, second) {
        _ if address.is_loopback() => Kind::Loopback,
        _ if address.is_unspecified() => Kind::Other("unspecified"),
        // fd00:ec2::/32 is unique local by its number, and what Amazon uses as link-local.
        (0xfe80..=0xfebf, _) | (0xfd00, 0x0ec2) => Kind::LinkLocal,
        (0xfc00..=0xfdff, _) => Kind::Other("unique local"),
        (0xff00.., _) => Kind::Other("multicast"),
        (0x2001, 0x0000..=0x01ff | 0x0db8) | (0x3fff, 0x0000..=0x0fff) => Kind::Other("reserved"),
        (0x2000..=0x3fff, _) => Kind::Public,
        _ => Kind::Other("reserved"),
    }
}

/// The IPv4 address that an IPv6 address stands for: mapped, compatible, 6to4 and NAT64.
fn carried(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let from = |high: u16, low: u16| Ipv4Addr::from((u32::from(high) << 16) | u32::from(low));
    match address.segments() {
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x2002, high, low, ..] => {
            Some(from(high, low))
        }
        // `::` and `::1` are no IPv4 addresses.
        [0, 0, 0, 0, 0, 0, high, low] if high != 0 => Some(from(high, low)),
        _ => None,
    }
}

/// Resolves names to addresses that may be connected to; one that may not refuses the name.
#[derive(Debug, Clone, Copy)]
pub(super) struct Resolver {
    /// A person allowed this URL, so it may be on loopback.
    pub(super) allowed: bool,
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let allowed = self.allowed;
        Box::pin(async move {
            let found = resolve(name.as_str(), allowed).await?;
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

async fn resolve(name: &str, allowed: bool) -> Result<Vec<SocketAddr>, Refused> {
    let unknown = |why: String| Refused::Unknown(name.to_owned(), why);
    let found = tokio::time::timeout(RESOLVE_TIMEOUT, tokio::net::lookup_host((name, 0)))
        .await
        .map_err(|_| unknown(format!("no answer within {RESOLVE_TIMEOUT:?}")))?
        .map_err(|error| unknown(error.to_string()))?;
    let found: Vec<SocketAddr> = found.collect();
    if found.is_empty() {
        return Err(unknown("it has no address".to_owned()));
    }
    for address in &found {
        check(address.ip(), false, allowed)?;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    /// An address, and whether it may be connected to: by a name, by itself, by a name when allowed, by itself when
    /// allowed.
    const TABLE: [(&str, [bool; 4]); 37] = [
        ("1.1.1.1", [true; 4]),
        ("8.8.4.4", [true; 4]),
        ("100.63.255.255", [true; 4]),
        ("100.128.0.1", [true; 4]),
        ("172.15.0.1", [true; 4]),
        ("172.32.0.1", [true; 4]),
        ("2606:4700:4700::1111", [true; 4]),
        ("::ffff:8.8.8.8", [true; 4]),
        ("64:ff9b::808:808", [true; 4]),
        ("127.0.0.1", [false, false, true, true]),
        ("127.255.255.254", [false, false, true, true]),
        ("::1", [false, false, true, true]),
        ("::ffff:127.0.0.1", [false, false, true, true]),
        ("64:ff9b::7f00:1", [false, false, true, true]),
        ("0.0.0.0", [false, false, false, true]),
        ("0.1.2.3", [false, false, false, true]),
        ("::", [false, false, false, true]),
        ("10.0.0.1", [false, false, false, true]),
        ("172.16.0.1", [false, false, false, true]),
        ("172.31.255.255", [false, false, false, true]),
        ("192.168.1.1", [false, false, false, true]),
        ("100.64.0.1", [false, false, false, true]),
        ("100.127.255.255", [false, false, false, true]),
        ("169.254.169.254", [false; 4]),
        ("198.18.0.1", [false, false, false, true]),
        ("224.0.0.1", [false, false, false, true]),
        ("255.255.255.255", [false, false, false, true]),
        ("::ffff:10.0.0.1", [false, false, false, true]),
        ("::ffff:169.254.169.254", [false; 4]),
        ("::10.0.0.1", [false, false, false, true]),
        ("2002:a00:1::", [false, false, false, true]),
        ("64:ff9b::a9fe:a9fe", [false; 4]),
        ("fc00::1", [false, false, false, true]),
        ("fd00:ec2::254", [false; 4]),
        ("fe80::1", [false; 4]),
        ("ff02::1", [false, false, false, true]),
        ("2001:db8::1", [false, false, false, true]),
    ];

    #[test]
    fn only_public_addresses_are_reached_unless_a_person_named_others() {
        for (text, expected) in TABLE {
            let address: IpAddr = text.parse().unwrap();
            let got = [(false, false), (true, false), (false, true), (true, true)]
                .map(|(named, allowed)| check(address, named, allowed).is_ok());
            assert_eq!(got, expected, "{text}");
        }
    }

    #[test]
    fn a_url_is_http_names_a_host_and_carries_no_password() {
        for (text, allowed, fine) in [
            ("https://example.org/mcp", false, true),
            ("http://127.0.0.1:8000/mcp", true, true),
            ("http://127.0.0.1:8000/mcp", false, false),
            ("http://0x7f.1/mcp", false, false),
            ("http://2130706433/", false, false),
            ("http://[::ffff:127.0.0.1]/", false, false),
            ("http://[::1]:80/", true, true),
            ("http://169.254.169.254/latest/meta-data", false, false),
            ("http://192.168.1.7:9000/mcp", true, true),
            ("ftp://example.org/", true, false),
            ("file:///etc/passwd", true, false),
            ("https://me:secret@example.org/", true, false),
            ("mcp", true, false),
        ] {
            assert_eq!(url(text, allowed).is_ok(), fine, "{text}");
        }
    }

    #[tokio::test]
    async fn a_name_is_refused_for_any_of_its_addresses() {
        assert!(matches!(resolve("localhost", false).await, Err(Refused::Loopback(_))));
        assert!(resolve("localhost", true).await.is_ok_and(|found| !found.is_empty()));
    }

    proptest! {
        #[test]
        fn an_ipv4_address_is_judged_the_same_however_ipv6_carries_it(bits: u32, named: bool, allowed: bool) {
            let plain = Ipv4Addr::from(bits);
            let expected = check(IpAddr::V4(plain), named, allowed).is_ok();
            let [a, b] = [(bits >> 16) as u16, bits as u16];
            for carrier in [
                plain.to_ipv6_mapped(),
                Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, a, b),
                Ipv6Addr::new(0x2002, a, b, 0, 0, 0, 0, 1),
            ] {
                prop_assert_eq!(check(IpAddr::V6(carrier), named, allowed).is_ok(), expected, "{}", carrier);
            }
        }

        #[test]
        fn nothing_that_the_standard_library_calls_special_is_reached_unasked(bits: u128, v4: u32) {
            let six = Ipv6Addr::from(bits);
            if six.is_multicast() || six.is_unique_local() || six.is_unicast_link_local() || six.is_loopback() {
                prop_assert!(check(IpAddr::V6(six), true, false).is_err());
            }
            let four = Ipv4Addr::from(v4);
            if four.is_private() || four.is_loopback() || four.is_link_local() || four.is_multicast()
                || four.is_broadcast() || four.is_documentation() || four.is_unspecified()
            {
                prop_assert!(check(IpAddr::V4(four), true, false).is_err());
            }
        }

        #[test]
        fn any_text_is_a_url_or_an_error(text in ".{0,80}", allowed: bool) {
            let _ = url(&text, allowed);
            let _ = url(&format!("http://{text}/"), allowed);
        }
    }
}
