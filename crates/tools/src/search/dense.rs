//! Vectors of tools, compared with all of them: for as many tools as a machine has, exact is quick enough.

/// Steps that a cosine is rounded to. Two stores add up in different orders; so small a difference must not show.
const STEPS: f32 = 65536.0;
/// Numbers multiplied side by side.
const LANES: usize = 16;

/// Rounded to what two stores of the same vectors agree on.
pub fn rounded(cosine: f32) -> f32 {
    if cosine.is_finite() { (cosine.clamp(-1.0, 1.0) * STEPS).round() / STEPS } else { 0.0 }
}

/// The vector of unit length that points where the given ones point on average. `None`: there is none.
pub fn mean(vectors: &[Vec<f32>]) -> Option<Vec<f32>> {
    let width = vectors.first()?.len();
    if vectors.iter().any(|vector| vector.len() != width) {
        return None;
    }
    let mut sum = vec![0.0f64; width];
    for vector in vectors {
        sum.iter_mut().zip(vector).for_each(|(sum, x)| *sum += f64::from(*x));
    }
    let length = sum.iter().map(|x| x * x).sum::<f64>().sqrt();
    #[expect(clippy::cast_possible_truncation, reason = "vectors are kept in single precision")]
    (length.is_finite() && length > 0.0).then(|| sum.into_iter().map(|x| (x / length) as f32).collect())
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; LANES];
    let (chunks_a, rest_a) = a.as_chunks::<LANES>();
    let (chunks_b, rest_b) = b.as_chunks::<LANES>();
    for (a, b) in chunks_a.iter().zip(chunks_b) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    sums.iter().sum::<f32>() + rest_a.iter().zip(rest_b).map(|(a, b)| a * b).sum::<f32>()
}

/// The vectors of slots, one behind the other.
#[derive(Debug, Default)]
pub(super) struct Matrix {
    width: usize,
    numbers: Vec<f32>,
    present: Vec<bool>,
    count: usize,
}

impl Matrix {
    /// How many vectors there are.
    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// Sets the vector of a slot. `false`: it is not as wide as the others, or not of unit length.
    pub(super) fn set(&mut self, slot: usize, vector: &[f32]) -> bool {
        // What is not a number is in no range.
        if !(0.99..=1.01).contains(&dot(vector, vector)) {
            return false;
        }
        if self.count == 0 {
            self.width = vector.len();
            self.numbers.clear();
            self.present.clear();
        } else if self.width != vector.len() {
            return false;
        }
        if self.present.len() <= slot {
            self.present.resize(slot + 1, false);
            self.numbers.resize((slot + 1) * self.width, 0.0);
        }
        let at = slot * self.width;
        if let (Some(row), Some(present)) = (self.numbers.get_mut(at..at + self.width), self.present.get_mut(slot)) {
            row.copy_from_slice(vector);
            self.count += usize::from(!*present);
            *present = true;
        }
        true
    }

    /// Forgets the vector of a slot.
    pub(super) fn clear(&mut self, slot: usize) {
        if let Some(present) = self.present.get_mut(slot).filter(|present| **present) {
            *present = false;
            self.count -= 1;
        }
    }

    /// The `most` slots whose vectors are nearest to `vector`, of those that `fits` takes, nearest first, each with
    /// its cosine.
    pub(super) fn nearest(&self, vector: &[f32], most: usize, fits: impl Fn(usize) -> bool) -> Vec<(usize, f32)> {
        if vector.len() != self.width || self.count == 0 || most == 0 {
            return Vec::new();
        }
        let mut found: Vec<(usize, f32)> = self
            .numbers
            .chunks_exact(self.width)
            .zip(&self.present)
            .enumerate()
            .filter(|(slot, (_, present))| **present && fits(*slot))
            .map(|(slot, (row, _))| (slot, rounded(dot(row, vector))))
            .collect();
        let order = |a: &(usize, f32), b: &(usize, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        if found.len() > most {
            // Those that tie with the last one all stay, so that which of them do does not hang on their slots.
            let (_, last, _) = found.select_nth_unstable_by(most - 1, order);
            let floor = last.1;
            found.retain(|(_, cosine)| *cosine >= floor);
        }
        found.sort_unstable_by(order);
        found
    }

    /// Bytes that the vectors take.
    pub(super) fn bytes(&self) -> usize {
        self.numbers.capacity() * size_of::<f32>() + self.present.capacity()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_nearest_come_first_and_those_that_were_cleared_do_not_come() {
        let mut matrix = Matrix::default();
        assert!(matrix.set(2, &[1.0, 0.0]));
        assert!(matrix.set(0, &[0.6, 0.8]));
        assert!(matrix.set(5, &[0.0, 1.0]));
        assert!(!matrix.set(1, &[1.0, 0.0, 0.0]), "another width");
        assert!(!matrix.set(1, &[2.0, 0.0]), "not of unit length");
        assert!(!matrix.set(1, &[f32::NAN, 0.0]));
        assert_eq!(matrix.nearest(&[1.0, 0.0], 9, |_| true), [(2, 1.0), (0, rounded(0.6)), (5, 0.0)]);
        assert_eq!(matrix.nearest(&[1.0, 0.0], 1, |slot| slot != 2), [(0, rounded(0.6))]);
        matrix.clear(2);
        matrix.clear(2);
        assert_eq!(matrix.len(), 2);
        assert_eq!(matrix.nearest(&[1.0, 0.0], 1, |_| true), [(0, rounded(0.6))]);
        assert!(matrix.nearest(&[1.0], 1, |_| true).is_empty());
    }

    #[test]
    fn a_mean_is_of_unit_length_or_none() {
        assert_eq!(mean(&[vec![1.0, 0.0], vec![0.0, 1.0]]).unwrap(), [0.5f32.sqrt(); 2]);
        assert_eq!(mean(&[vec![1.0], vec![-1.0]]), None);
        assert_eq!(mean(&[vec![1.0], vec![1.0, 0.0]]), None);
        assert_eq!(mean(&[]), None);
    }
}
