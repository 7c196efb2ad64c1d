//! How numbers lie in a GGUF file: as they are, halved, or in blocks of small integers.

use serde::{Deserialize, Serialize};

use crate::gguf::ggml::{self, GgmlType};

/// What the large tensors of a converted model are stored as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Weights {
    /// Floats of 32 bits, as they came.
    F32,
    /// Floats of 16 bits.
    F16,
    /// Blocks of 32 integers of 8 bits with a common factor.
    #[serde(rename = "q8_0")]
    Q8,
}

impl Weights {
    /// The element type of ggml.
    pub(super) fn kind(self) -> GgmlType {
        let name = match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Q8 => "q8_0",
        };
        ggml::by_name(name).expect("a test looks all three up")
    }

    /// `general.file_type`.
    pub(super) fn file_type(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q8 => 7,
        }
    }

    /// The bytes of `numbers`, which are whole blocks.
    pub(super) fn encode(self, numbers: &[f32]) -> Vec<u8> {
        match self {
            Self::F32 => numbers.iter().flat_map(|n| n.to_le_bytes()).collect(),
            Self::F16 => numbers.iter().flat_map(|n| half(*n).to_le_bytes()).collect(),
            Self::Q8 => numbers.chunks(32).flat_map(block).collect(),
        }
    }
}

/// A block of `q8_0`: the factor as half float, then the integers.
fn block(numbers: &[f32]) -> Vec<u8> {
    let largest = numbers.iter().fold(0f32, |most, n| most.max(n.abs()));
    let factor = largest / 127.0;
    let inverse = if factor == 0.0 { 0.0 } else { 1.0 / factor };
    let mut out = half(factor).to_le_bytes().to_vec();
    // Within -127..=127 by the choice of the factor.
    out.extend(numbers.iter().map(|n| (n * inverse).round() as i8 as u8));
    out
}

/// The nearest half float (IEEE 754 binary16), to even when two are as near.
fn half(number: f32) -> u16 {
    let bits = number.to_bits();
    let sign = (bits >> 16 & 0x8000) as u16;
    let exponent = (bits >> 23 & 0xff) as i32 - 127;
    let mantissa = bits & 0x007f_ffff;
    if exponent == 128 {
        return sign | 0x7c00 | if mantissa == 0 { 0 } else { 0x200 };
    }
    if exponent > 15 {
        return sign | 0x7c00;
    }
    // Below 2^-25 everything is nearer to zero than to the smallest half.
    if exponent < -25 {
        return sign;
    }
    let (value, dropped) = if exponent >= -14 {
        (((exponent + 15) as u32) << 23 | mantissa, 13)
    } else {
        (mantissa | 0x0080_0000, (13 - 14 - exponent) as u32)
    };
    let kept = value >> dropped;
    let rest = value & ((1 << dropped) - 1);
    let middle = 1 << (dropped - 1);
    let up = rest > middle || (rest == middle && kept & 1 == 1);
    // A carry runs into the exponent, which is right: the next power of two, or infinity.
    sign | (kept + u32::from(up)) as u16
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    /// The value of a half float, by its definition.
    fn value(half: u16) -> f64 {
        let sign = if half >> 15 == 1 { -1.0 } else { 1.0 };
        let (exponent, mantissa) = (i32::from(half >> 10 & 31), f64::from(half & 0x3ff));
        match exponent {
            0 => sign * mantissa * 2f64.powi(-24),
            31 if mantissa == 0.0 => sign * f64::INFINITY,
            31 => f64::NAN,
            _ => sign * (1.0 + mantissa / 1024.0) * 2f64.powi(exponent - 15),
        }
    }

    #[test]
    fn every_half_float_becomes_itself() {
        for bits in 0..=u16::MAX {
            let value = value(bits);
            if value.is_nan() {
                assert!(self::value(half(value as f32)).is_nan());
            } else {
                assert_eq!(half(value as f32), bits, "{value}");
            }
        }
    }

    #[test]
    fn every_kind_is_one_of_ggml() {
        for (weights, name, bytes) in [(Weights::F32, "f32", 128), (Weights::F16, "f16", 64), (Weights::Q8, "q8_0", 34)]
        {
            assert_eq!(weights.kind().name, name);
            assert_eq!(weights.encode(&[0.25; 32]).len(), bytes);
        }
    }

    proptest! {
        #[test]
        fn the_half_is_the_nearest(number in prop_oneof![-70000f32..70000.0, -1f32..1.0, -1e-6f32..1e-6]) {
            let got = half(number);
            let off = |bits: u16| (value(bits) - f64::from(number)).abs();
            // Beyond the largest half the next one would be 65536.
            if value(got).is_finite() {
                for other in [got.wrapping_add(1), got.wrapping_sub(1)] {
                    prop_assert!(value(other).is_nan() || off(got) <= off(other), "{number} {got:x}");
                }
            } else {
                prop_assert!(number.abs() >= 65520.0);
            }
        }

        #[test]
        fn blocks_are_near_what_they_hold(numbers in proptest::collection::vec(-3f32..3.0, 32)) {
            let bytes = Weights::Q8.encode(&numbers);
            let factor = value(u16::from_le_bytes([bytes[0], bytes[1]])) as f32;
            let most = numbers.iter().fold(0f32, |most, n| most.max(n.abs()));
            for (number, byte) in numbers.iter().zip(&bytes[2..]) {
                prop_assert!((number - factor * f32::from(*byte as i8)).abs() <= most * 0.005);
            }
        }
    }
}
