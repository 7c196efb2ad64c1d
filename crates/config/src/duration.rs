//! Durations as people write them: `30s`, `5 min`, `1h 30m`.

use std::time::Duration;

use jiff::fmt::friendly::{Designator, Spacing, SpanParser, SpanPrinter};
use serde::{Deserializer, Serializer, de};

static PARSER: SpanParser = SpanParser::new();
static PRINTER: SpanPrinter = SpanPrinter::new().designator(Designator::Compact).spacing(Spacing::BetweenUnits);

/// The text of a duration, such as `1m 30s`.
pub fn format(value: Duration) -> String {
    PRINTER.unsigned_duration_to_string(&value)
}

/// Reads `30s`, `5 min`, `1h 30m`; the error says what was wrong with the text.
pub fn parse(text: &str) -> Result<Duration, String> {
    PARSER
        .parse_unsigned_duration(text)
        .map_err(|error| format!("`{text}` is not a duration such as \"30s\", \"5m\" or \"1h 30m\" ({error})"))
}

pub(crate) fn serialize<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&format(*value))
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    struct Visitor;
    impl de::Visitor<'_> for Visitor {
        type Value = Duration;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a duration with its unit, such as \"30s\", \"5m\" or \"1h 30m\"")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Duration, E> {
            parse(text).map_err(E::custom)
        }
    }
    // `any`, so that a bare number is told what it lacks instead of being taken for some unit.
    deserializer.deserialize_any(Visitor)
}

/// The same, where nothing may be said.
pub(crate) mod optional {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    #[serde(transparent)]
    struct Text(#[serde(with = "super")] Duration);

    pub(crate) fn serialize<S: Serializer>(value: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
        value.map(Text).serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
        Ok(Option::<Text>::deserialize(deserializer)?.map(|text| text.0))
    }
}
