//! One generic body, compiled once per instruction level, and the sums that such bodies share.
//!
//! A body is an `#[inline(always)]` generic function of plain loops. [`stamp!`] makes the operation's `Forms` of it:
//! each level's copy inlines the body under that level's `#[target_feature]`, where LLVM vectorises it. Nothing here
//! knows an operation. aarch64's baseline has Advanced SIMD, so that its portable copy is its NEON form.

use crate::Real;

/// Sums are kept in this many parts, so that they vectorise at every level; the parts are added as a tree.
/// The same on every machine: a sum's bits depend on its terms alone.
pub(crate) const PARTS: usize = 16;

/// `Forms<E>` with one function pointer per body and `at(isa)`.
macro_rules! stamp {
    ($($name:ident: fn($($arg:ident: $type:ty),* $(,)?) $(-> $ret:ty)? = $body:ident;)+) => {
        /// This operation's forms for one number type at one level.
        pub(crate) struct Forms<E: $crate::Elem> {
            $($name: unsafe fn($($type),*) $(-> $ret)?,)+
        }

        impl<E: $crate::Elem> Forms<E> {
            /// The forms of `isa`, which the machine that calls them must have.
            pub(crate) const fn at(isa: $crate::Isa) -> Self {
                match isa {
                    #[cfg(target_arch = "x86_64")]
                    $crate::Isa::Avx2 | $crate::Isa::AvxVnni => Self { $($name: avx2::$name::<E>),+ },
                    #[cfg(target_arch = "x86_64")]
                    $crate::Isa::Avx512 | $crate::Isa::Avx512Vnni | $crate::Isa::Avx512Bf16 | $crate::Isa::Amx => Self { $($name: avx512::$name::<E>),+ },
                    _ => Self { $($name: portable::$name::<E>),+ },
                }
            }
        }

        mod portable {
            use super::*;
            $(pub(super) unsafe fn $name<E: $crate::Elem>($($arg: $type),*) $(-> $ret)? { $body::<E>($($arg),*) })+
        }
        #[cfg(target_arch = "x86_64")]
        mod avx2 {
            use super::*;
            $(#[target_feature(enable = "avx2,fma,f16c")]
            pub(super) unsafe fn $name<E: $crate::Elem>($($arg: $type),*) $(-> $ret)? { $body::<E>($($arg),*) })+
        }
        #[cfg(target_arch = "x86_64")]
        mod avx512 {
            use super::*;
            $(#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
            pub(super) unsafe fn $name<E: $crate::Elem>($($arg: $type),*) $(-> $ret)? { $body::<E>($($arg),*) })+
        }
    };
}
pub(crate) use stamp;

/// The sum of `term(slices[0][i], slices[1][i], ..)` over i, in [`PARTS`] parts. The slices have one length.
#[inline(always)]
pub(crate) fn sum<const A: usize, T: Copy, R: Real>(slices: [&[T]; A], term: impl Fn([T; A]) -> R) -> R {
    let mut parts = [R::ZERO; PARTS];
    let chunks = slices.map(|s| s.as_chunks::<PARTS>().0);
    for c in 0..chunks[0].len() {
        let chunk = chunks.map(|chunks| &chunks[c]);
        for (i, part) in parts.iter_mut().enumerate() {
            *part += term(chunk.map(|values| values[i]));
        }
    }
    let rests = slices.map(|s| s.as_chunks::<PARTS>().1);
    for i in 0..rests[0].len() {
        parts[i] += term(rests.map(|rest| rest[i]));
    }
    fold(parts, |a, b| a + b)
}

/// Parts to one value, as a tree.
#[inline(always)]
pub(crate) fn fold<R: Real>(mut parts: [R; PARTS], join: impl Fn(R, R) -> R) -> R {
    let mut width = PARTS / 2;
    while width > 0 {
        for i in 0..width {
            parts[i] = join(parts[i], parts[i + width]);
        }
        width /= 2;
    }
    parts[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_has_every_term_once_at_every_length() {
        for n in 0..=3 * PARTS {
            let (a, b): (Vec<f64>, Vec<f64>) = (0..n).map(|i| (i as f64, 3.0)).unzip();
            let want = 3.0 * (n * n.saturating_sub(1) / 2) as f64;
            assert_eq!(sum([&a, &b], |[a, b]| a * b), want, "{n} terms");
        }
    }
}
