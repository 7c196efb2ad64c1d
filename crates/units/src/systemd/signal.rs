//! Messages from the bus, told apart. What does not come from systemd or the bus itself is nobody's business: any user of the
//! machine can send a signal that looks like one of systemd's.

use std::num::NonZeroU32;

use zbus::Message;
use zbus::message::Type;
use zbus::zvariant::{ObjectPath, OwnedObjectPath};

use super::bus::SYSTEMD;
use super::object::UNITS;

/// The bus itself.
pub(super) const BUS: &str = "org.freedesktop.DBus";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";

/// What systemd has to be asked for; a broadcast comes only to those with a rule that matches it.
pub(super) const RULES: [&str; 3] = [
    "type='signal',sender='org.freedesktop.systemd1',path='/org/freedesktop/systemd1',\
     interface='org.freedesktop.systemd1.Manager'",
    "type='signal',sender='org.freedesktop.systemd1',path_namespace='/org/freedesktop/systemd1/unit',\
     interface='org.freedesktop.DBus.Properties',member='PropertiesChanged'",
    "type='signal',sender='org.freedesktop.DBus',interface='org.freedesktop.DBus',member='NameOwnerChanged',\
     arg0='org.freedesktop.systemd1'",
];

/// A message, told apart.
#[derive(Debug)]
pub(super) enum Heard {
    /// The answer to a call, good or bad.
    Answer(NonZeroU32),
    /// systemd left the bus, or came to it under another name.
    Owner(Option<String>),
    /// Properties of the unit at this path changed; they are in the message.
    Properties(String),
    /// systemd loaded a unit.
    New(OwnedObjectPath),
    /// systemd forgot a unit.
    Removed(OwnedObjectPath),
    /// A job ended.
    JobRemoved { id: u32, job: OwnedObjectPath, unit: String, result: String },
    /// systemd begins or ends reading its files again.
    Reloading(bool),
    /// Nothing that is of use here.
    Noise,
}

/// Tells a message apart; `owner` is systemd's unique name.
pub(super) fn tell_apart(message: &Message, owner: Option<&str>) -> Heard {
    let header = message.header();
    match header.message_type() {
        Type::MethodReturn | Type::Error => return header.reply_serial().map_or(Heard::Noise, Heard::Answer),
        Type::MethodCall => return Heard::Noise,
        Type::Signal => {}
    }
    let (Some(sender), Some(interface), Some(member)) = (header.sender(), header.interface(), header.member()) else {
        return Heard::Noise;
    };
    if sender.as_str() == BUS {
        return if interface.as_str() == BUS && member.as_str() == "NameOwnerChanged" {
            owner_changed(message)
        } else {
            Heard::Noise
        };
    }
    if owner != Some(sender.as_str()) {
        return Heard::Noise;
    }
    match (interface.as_str(), member.as_str()) {
        (PROPERTIES, "PropertiesChanged") => match header.path() {
            Some(path) if path.starts_with(UNITS) => Heard::Properties(path.to_string()),
            _ => Heard::Noise,
        },
        (MANAGER, member) => manager(message, member).unwrap_or(Heard::Noise),
        _ => Heard::Noise,
    }
}

fn owner_changed(message: &Message) -> Heard {
    match message.body().deserialize::<(&str, &str, &str)>() {
        Ok((SYSTEMD, _, "")) => Heard::Owner(None),
        Ok((SYSTEMD, _, owner)) => Heard::Owner(Some(owner.to_owned())),
        _ => Heard::Noise,
    }
}

fn manager(message: &Message, member: &str) -> Option<Heard> {
    let body = message.body();
    Some(match member {
        "UnitNew" | "UnitRemoved" => {
            let (_, path): (&str, ObjectPath<'_>) = body.deserialize().ok()?;
            let path = OwnedObjectPath::from(path);
            if member == "UnitNew" { Heard::New(path) } else { Heard::Removed(path) }
        }
        "JobRemoved" => {
            let (id, job, unit, result): (u32, ObjectPath<'_>, &str, &str) = body.deserialize().ok()?;
            Heard::JobRemoved { id, job: job.into(), unit: unit.to_owned(), result: result.to_owned() }
        }
        "Reloading" => Heard::Reloading(body.deserialize().ok()?),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn signal(sender: &str, interface: &'static str, member: &'static str) -> Message {
        let path = "/org/freedesktop/systemd1";
        Message::signal(path, interface, member)
            .unwrap()
            .sender(sender)
            .unwrap()
            .build(&(
                7_u32,
                ObjectPath::from_static_str_unchecked("/org/freedesktop/systemd1/job/7"),
                "a.service",
                "done",
            ))
            .unwrap()
    }

    #[test]
    fn a_signal_counts_only_when_it_comes_from_systemd() {
        let message = signal(":1.0", MANAGER, "JobRemoved");
        assert!(matches!(tell_apart(&message, Some(":1.0")), Heard::JobRemoved { id: 7, .. }));
        assert!(matches!(tell_apart(&message, Some(":1.9")), Heard::Noise));
        assert!(matches!(tell_apart(&message, None), Heard::Noise));
        let other = signal(":1.0", "org.example.Manager", "JobRemoved");
        assert!(matches!(tell_apart(&other, Some(":1.0")), Heard::Noise));
    }

    #[test]
    fn a_signal_with_another_body_is_nothing() {
        assert!(matches!(tell_apart(&signal(":1.0", MANAGER, "UnitNew"), Some(":1.0")), Heard::Noise));
        assert!(matches!(tell_apart(&signal(":1.0", MANAGER, "Reloading"), Some(":1.0")), Heard::Noise));
    }

    #[test]
    fn only_the_bus_says_who_systemd_is() {
        let says = |sender: &str, owner: &str| {
            Message::signal("/org/freedesktop/DBus", BUS, "NameOwnerChanged")
                .unwrap()
                .sender(sender)
                .unwrap()
                .build(&(SYSTEMD, "", owner))
                .unwrap()
        };
        assert!(matches!(tell_apart(&says(BUS, ":1.5"), None), Heard::Owner(Some(owner)) if owner == ":1.5"));
        assert!(matches!(tell_apart(&says(BUS, ""), None), Heard::Owner(None)));
        assert!(matches!(tell_apart(&says(":1.66", ":1.66"), Some(":1.5")), Heard::Noise));
    }
}
