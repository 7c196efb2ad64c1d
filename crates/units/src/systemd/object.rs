//! A unit's place on the bus.

use zbus::zvariant::OwnedObjectPath;

use crate::port::UnitId;

/// Where all units are.
pub(super) const UNITS: &str = "/org/freedesktop/systemd1/unit/";

/// The object path of a unit: every byte that is no letter or digit becomes `_` and two hexadecimal digits, as does a digit
/// at the beginning.
pub(super) fn path(unit: &UnitId) -> OwnedObjectPath {
    let mut path = String::from(UNITS);
    for (index, byte) in unit.as_str().bytes().enumerate() {
        if byte.is_ascii_alphabetic() || (byte.is_ascii_digit() && index > 0) {
            path.push(char::from(byte));
        } else {
            path.push_str(&format!("_{byte:02x}"));
        }
    }
    // Letters, digits and underscores below a fixed path: always valid.
    OwnedObjectPath::try_from(path).unwrap_or_default()
}

/// The D-Bus interface with the properties of a kind of unit (`service` → `…Service`); none for a kind without.
pub(super) fn interface(unit: &UnitId) -> Option<&'static str> {
    Some(match unit.kind()? {
        "service" => "org.freedesktop.systemd1.Service",
        "socket" => "org.freedesktop.systemd1.Socket",
        "mount" => "org.freedesktop.systemd1.Mount",
        "automount" => "org.freedesktop.systemd1.Automount",
        "swap" => "org.freedesktop.systemd1.Swap",
        "timer" => "org.freedesktop.systemd1.Timer",
        "path" => "org.freedesktop.systemd1.Path",
        "scope" => "org.freedesktop.systemd1.Scope",
        "slice" => "org.freedesktop.systemd1.Slice",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    /// The unit at an object path.
    fn unit(path: &str) -> Option<UnitId> {
        let escaped = path.strip_prefix(UNITS)?;
        let mut name = Vec::with_capacity(escaped.len());
        let mut bytes = escaped.bytes();
        while let Some(byte) = bytes.next() {
            if byte == b'_' {
                let digits = [bytes.next()?, bytes.next()?];
                name.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
            } else {
                name.push(byte);
            }
        }
        UnitId::new(String::from_utf8(name).ok()?).ok()
    }

    #[test]
    fn paths_are_systemds() {
        for (name, escaped) in [
            ("dbus.service", "dbus_2eservice"),
            ("postgresql@15-main.service", "postgresql_4015_2dmain_2eservice"),
            ("-.mount", "_2d_2emount"),
            ("9p.service", "_39p_2eservice"),
            ("a_b\\x2d1.service", "a_5fb_5cx2d1_2eservice"),
        ] {
            let id = UnitId::new(name).unwrap();
            assert_eq!(path(&id).as_str(), format!("{UNITS}{escaped}"));
            assert_eq!(unit(path(&id).as_str()), Some(id));
        }
        for bad in ["/", "/org/freedesktop/systemd1/unit/", "/org/freedesktop/systemd1/unit/a_2", "/x/a_2eservice"] {
            assert_eq!(unit(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn every_name_goes_there_and_back(name in "[A-Za-z0-9:_.\\\\@-]{1,255}") {
            if let Ok(id) = UnitId::new(name) {
                prop_assert_eq!(unit(path(&id).as_str()), Some(id));
            }
        }

        #[test]
        fn any_path_is_read_without_panic(path in "(/org/freedesktop/systemd1/unit/)?\\PC{0,40}") {
            let _ = unit(&path);
        }
    }
}
