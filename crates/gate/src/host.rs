//! Against DNS rebinding: a page whose name was pointed at 127.0.0.1 must not talk to a daemon on loopback.
//!
//! The browser tells on such a page: it sends the page's own name as `Host`, and for most requests as `Origin`.

use std::net::IpAddr;

use http::header::{HOST, ORIGIN};
use http::uri::Authority;
use http::{HeaderMap, HeaderValue, StatusCode, Uri};

use crate::problem::Problem;

/// Which names a surface answers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hosts {
    /// Addresses and `localhost`: it listens on loopback, so nobody has a reason to call it by another name.
    Loopback,
    /// Every name: it listens on the network, where machines have names, or on a Unix socket.
    Any,
}

/// Refuses what a browser sends for a page of somebody else.
pub(crate) fn check(hosts: Hosts, uri: &Uri, headers: &HeaderMap) -> Result<(), Problem> {
    let mut shown = headers.get_all(HOST).iter();
    let host = shown.next().map(authority).transpose()?;
    if shown.next().is_some() {
        return Err(Problem::bad_request("invalid-host", "more than one `Host` header"));
    }
    if hosts == Hosts::Loopback
        && let Some(foreign) = host.iter().chain(uri.authority()).find(|a| !is_address_or_localhost(a))
    {
        return Err(Problem::new(
            StatusCode::MISDIRECTED_REQUEST,
            "host-not-served",
            format!(
                "this surface listens on loopback and does not answer to `{}`; use 127.0.0.1 or localhost",
                foreign.host()
            ),
        ));
    }
    match headers.get(ORIGIN) {
        Some(origin) if !is_own(origin, host.as_ref()) => Err(Problem::new(
            StatusCode::FORBIDDEN,
            "foreign-origin",
            "a page from another origin may not call this surface; call it from a program, or from a page on this machine",
        )),
        _ => Ok(()),
    }
}

fn authority(value: &HeaderValue) -> Result<Authority, Problem> {
    Authority::try_from(value.as_bytes())
        .map_err(|_| Problem::bad_request("invalid-host", "the `Host` header is not a host"))
}

fn is_address_or_localhost(authority: &Authority) -> bool {
    address(authority).is_some() || is_localhost(authority.host())
}

fn address(authority: &Authority) -> Option<IpAddr> {
    authority.host().trim_start_matches('[').trim_end_matches(']').parse().ok()
}

fn is_localhost(name: &str) -> bool {
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    name == "localhost" || name.ends_with(".localhost")
}

/// An origin on this machine, or the one the request is addressed to.
fn is_own(origin: &HeaderValue, host: Option<&Authority>) -> bool {
    let origin = origin.to_str().ok().and_then(|o| o.parse::<Uri>().ok());
    let Some(origin) = origin.as_ref().filter(|o| o.scheme().is_some()).and_then(Uri::authority) else {
        return false;
    };
    is_localhost(origin.host()) || address(origin).is_some_and(|a| a.is_loopback()) || Some(origin) == host
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn status(hosts: Hosts, uri: &str, host: &str, origin: Option<&str>) -> u16 {
        let mut headers = HeaderMap::new();
        headers.insert(HOST, host.parse().unwrap());
        if let Some(origin) = origin {
            headers.insert(ORIGIN, origin.parse().unwrap());
        }
        check(hosts, &uri.parse().unwrap(), &headers).map_or_else(|p| p.status().as_u16(), |()| 200)
    }

    #[test]
    fn a_loopback_surface_answers_to_addresses_and_localhost_only() {
        for (host, expected) in [
            ("127.0.0.1:8092", 200),
            ("[::1]:8092", 200),
            ("192.168.1.7:8092", 200),
            ("localhost", 200),
            ("LOCALHOST:8092", 200),
            ("lares.localhost:8092", 200),
            ("evil.example:8092", 421),
            ("localhost.evil.example", 421),
            ("127.0.0.1.evil.example", 421),
            ("notlocalhost", 421),
            ("a b", 400),
            ("", 400),
        ] {
            assert_eq!(status(Hosts::Loopback, "/", host, None), expected, "{host}");
        }
        assert_eq!(status(Hosts::Loopback, "http://evil.example/", "127.0.0.1", None), 421);
        assert_eq!(status(Hosts::Any, "/", "server.lan:8092", None), 200);
    }

    #[test]
    fn pages_of_another_origin_are_refused() {
        for (origin, expected) in [
            ("http://localhost:3000", 200),
            ("http://127.0.0.1:8100", 200),
            ("http://[::1]:8100", 200),
            ("http://server.lan:8092", 200),
            ("http://server.lan:1", 403),
            ("https://evil.example", 403),
            ("http://10.0.0.9", 403),
            ("null", 403),
            ("localhost", 403),
        ] {
            assert_eq!(status(Hosts::Any, "/", "server.lan:8092", Some(origin)), expected, "{origin}");
        }
        assert_eq!(status(Hosts::Loopback, "/", "evil.example", Some("http://evil.example")), 421);
    }

    #[test]
    fn programs_that_send_no_host_pass_and_two_hosts_do_not() {
        let mut headers = HeaderMap::new();
        assert!(check(Hosts::Loopback, &Uri::from_static("/"), &headers).is_ok());
        headers.append(HOST, HeaderValue::from_static("localhost"));
        headers.append(HOST, HeaderValue::from_static("localhost"));
        assert_eq!(check(Hosts::Any, &Uri::from_static("/"), &headers).unwrap_err().status(), 400);
    }
}
