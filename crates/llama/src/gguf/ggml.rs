//! Element types of tensors: how many elements share a block, and how many bytes a block takes.

/// One element type of ggml.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct GgmlType {
    /// Number in the file format.
    pub id: u32,
    /// The name llama.cpp uses, in lower case for plain and legacy types, such as `q4_0` or `q4_K`.
    pub name: &'static str,
    /// Elements in a block.
    pub block: u64,
    /// Bytes of a block.
    pub bytes: u64,
}

const fn row(id: u32, name: &'static str, block: u64, bytes: u64) -> GgmlType {
    GgmlType { id, name, block, bytes }
}

/// Every type that files of today may hold. Gaps in the numbers are types that were removed from the format.
pub const TYPES: &[GgmlType] = &[
    row(0, "f32", 1, 4),
    row(1, "f16", 1, 2),
    row(2, "q4_0", 32, 18),
    row(3, "q4_1", 32, 20),
    row(6, "q5_0", 32, 22),
    row(7, "q5_1", 32, 24),
    row(8, "q8_0", 32, 34),
    row(9, "q8_1", 32, 36),
    row(10, "q2_K", 256, 84),
    row(11, "q3_K", 256, 110),
    row(12, "q4_K", 256, 144),
    row(13, "q5_K", 256, 176),
    row(14, "q6_K", 256, 210),
    row(15, "q8_K", 256, 292),
    row(16, "iq2_xxs", 256, 66),
    row(17, "iq2_xs", 256, 74),
    row(18, "iq3_xxs", 256, 98),
    row(19, "iq1_s", 256, 50),
    row(20, "iq4_nl", 32, 18),
    row(21, "iq3_s", 256, 110),
    row(22, "iq2_s", 256, 82),
    row(23, "iq4_xs", 256, 136),
    row(24, "i8", 1, 1),
    row(25, "i16", 1, 2),
    row(26, "i32", 1, 4),
    row(27, "i64", 1, 8),
    row(28, "f64", 1, 8),
    row(29, "iq1_m", 256, 56),
    row(30, "bf16", 1, 2),
    row(34, "tq1_0", 256, 54),
    row(35, "tq2_0", 256, 66),
    row(39, "mxfp4", 32, 17),
    row(40, "nvfp4", 64, 36),
    row(41, "q1_0", 128, 18),
    row(42, "q2_0", 64, 18),
];

/// The type with this number.
pub fn by_id(id: u32) -> Option<GgmlType> {
    TYPES.iter().find(|t| t.id == id).copied()
}

/// The type with this name, in any case.
pub fn by_name(name: &str) -> Option<GgmlType> {
    TYPES.iter().find(|t| t.name.eq_ignore_ascii_case(name)).copied()
}

impl GgmlType {
    /// Bytes of `elements` elements; `None` when they do not fill whole blocks or the product does not fit.
    pub fn size_of(self, elements: u64) -> Option<u64> {
        if !elements.is_multiple_of(self.block) {
            return None;
        }
        (elements / self.block).checked_mul(self.bytes)
    }
}

/// Names of `general.file_type`, by number.
const FILE_TYPES: &[(u32, &str)] = &[
    (0, "F32"),
    (1, "F16"),
    (2, "Q4_0"),
    (3, "Q4_1"),
    (7, "Q8_0"),
    (8, "Q5_0"),
    (9, "Q5_1"),
    (10, "Q2_K"),
    (11, "Q3_K_S"),
    (12, "Q3_K_M"),
    (13, "Q3_K_L"),
    (14, "Q4_K_S"),
    (15, "Q4_K_M"),
    (16, "Q5_K_S"),
    (17, "Q5_K_M"),
    (18, "Q6_K"),
    (19, "IQ2_XXS"),
    (20, "IQ2_XS"),
    (21, "Q2_K_S"),
    (22, "IQ3_XS"),
    (23, "IQ3_XXS"),
    (24, "IQ1_S"),
    (25, "IQ4_NL"),
    (26, "IQ3_S"),
    (27, "IQ3_M"),
    (28, "IQ2_S"),
    (29, "IQ2_M"),
    (30, "IQ4_XS"),
    (31, "IQ1_M"),
    (32, "BF16"),
    (36, "TQ1_0"),
    (37, "TQ2_0"),
    (38, "MXFP4"),
    (39, "NVFP4"),
    (40, "Q1_0"),
    (41, "Q2_0"),
];

/// The name people know a quantisation by, from `general.file_type`.
pub fn file_type_name(file_type: u32) -> Option<&'static str> {
    // Bit 10 says that the type was guessed, not written; the name is the same.
    FILE_TYPES.iter().find(|(id, _)| *id == file_type & !1024).map(|(_, name)| *name)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn numbers_and_names_are_unique_and_no_type_is_empty() {
        for (i, a) in TYPES.iter().enumerate() {
            assert!(a.block > 0 && a.bytes > 0, "{a:?}");
            assert!(TYPES[i + 1..].iter().all(|b| b.id != a.id && b.name != a.name), "{a:?}");
            assert_eq!(by_id(a.id), Some(*a));
            assert_eq!(by_name(&a.name.to_uppercase()), Some(*a));
        }
    }

    #[test]
    fn sizes_count_whole_blocks() {
        assert_eq!(by_name("q4_0").unwrap().size_of(64), Some(36));
        assert_eq!(by_name("q4_K").unwrap().size_of(100), None);
        assert_eq!(by_name("f32").unwrap().size_of(u64::MAX), None);
        assert_eq!(file_type_name(15), Some("Q4_K_M"));
        assert_eq!(file_type_name(1024 + 15), Some("Q4_K_M"));
        assert_eq!(file_type_name(33), None);
    }
}
