//! Which registers each number type uses at each level, and the tiles compiled for them.

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use super::lanes::Pair;
use super::lanes::{Lanes, Single, Unit};
#[cfg(target_arch = "aarch64")]
use super::neon::Dot;
use super::product::{self, Left, Out, Products, Right, Span};
use super::{Block, Heads, KeyBlock, backward, forward};
#[cfg(target_arch = "x86_64")]
use super::{amx, x86::Dot};
use crate::{Elem, Isa, Real};
use half::bf16;
#[cfg(target_arch = "aarch64")]
use std::arch::aarch64::float32x4_t;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{__m256, __m512};

type Forward<E, R> = unsafe fn(&mut [E], &mut [R], &[E], &[E], &[E], Heads, &Block, &mut Vec<R>);
type Delta<E, R> = unsafe fn(&mut [R], &[E], &[E], Heads);
type BackwardQ<E, R> = unsafe fn(&mut [R], &[E], &[E], &[E], &[E], &[R], &[R], Heads, &Block, &mut Vec<R>);
type BackwardKv<E, R> =
    unsafe fn(&mut [R], &mut [E], &[E], &[E], &[E], &[E], &[R], &[R], Heads, &KeyBlock, &mut Vec<R>);

/// Attention's forms for one number type at one level.
pub(crate) struct Forms<E: Elem> {
    pub(super) forward: Forward<E, E::Real>,
    pub(super) delta: Delta<E, E::Real>,
    pub(super) backward_q: BackwardQ<E, E::Real>,
    pub(super) backward_kv: BackwardKv<E, E::Real>,
}

/// Compiles the tiles under a level's features, generic over the registers L, and for scores the units U and registers S.
macro_rules! level {
    ($name:ident $(, $features:literal)?) => {
        pub(super) mod $name {
            use super::*;

            $(#[target_feature(enable = $features)])?
            unsafe fn set<R: Real, L: Lanes<R>>(c: Out<R>, a: Left<R>, b: Right<R>, terms: usize) {
                product::set::<R, L>(c, a, b, terms);
            }
            $(#[target_feature(enable = $features)])?
            pub(in super::super) unsafe fn add<R: Real, L: Lanes<R>>(c: Out<R>, a: Left<R>, b: Right<R>, terms: usize, span: Span) {
                product::add::<R, L>(c, a, b, terms, span);
            }
            const fn products<R: Real, S: Lanes<R>, L: Lanes<R>>() -> Products<R> {
                // SAFETY: only this level's forms use them.
                unsafe { Products::new(set::<R, S>, add::<R, L>) }
            }

            pub(super) const fn forms<E: Elem, U: Unit<E>, S: Lanes<E::Real>, L: Lanes<E::Real>>() -> Forms<E> {
                Forms {
                    forward: self::forward::<E, U, S, L>,
                    delta: self::delta::<E, U, S>,
                    backward_q: self::backward_q::<E, U, S, L>,
                    backward_kv: self::backward_kv::<E, U, S, L>,
                }
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn forward<E: Elem, U: Unit<E>, S: Lanes<E::Real>, L: Lanes<E::Real>>(
                o: &mut [E], lse: &mut [E::Real], q: &[E], k: &[E], v: &[E],
                heads: Heads, block: &Block, scratch: &mut Vec<E::Real>,
            ) {
                forward::forward::<E, U>(o, lse, q, k, v, heads, block, scratch, &const { products::<E::Real, S, L>() });
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn delta<E: Elem, U: Unit<E>, S: Lanes<E::Real>>(delta: &mut [E::Real], d_o: &[E], o: &[E], heads: Heads) {
                forward::delta::<E, U, S>(delta, d_o, o, heads);
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn backward_q<E: Elem, U: Unit<E>, S: Lanes<E::Real>, L: Lanes<E::Real>>(
                dq: &mut [E::Real], d_o: &[E], q: &[E], k: &[E], v: &[E], lse: &[E::Real], delta: &[E::Real],
                heads: Heads, block: &Block, scratch: &mut Vec<E::Real>,
            ) {
                backward::backward_q::<E, U>(dq, d_o, q, k, v, lse, delta, heads, block, scratch, &const { products::<E::Real, S, L>() });
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn backward_kv<E: Elem, U: Unit<E>, S: Lanes<E::Real>, L: Lanes<E::Real>>(
                dk: &mut [E::Real], dv: &mut [E], d_o: &[E], q: &[E], k: &[E], v: &[E], lse: &[E::Real], delta: &[E::Real],
                heads: Heads, block: &KeyBlock, scratch: &mut Vec<E::Real>,
            ) {
                backward::backward_kv::<E, U>(dk, dv, d_o, q, k, v, lse, delta, heads, block, scratch, &const { products::<E::Real, S, L>() });
            }
        }
    };
}
level!(portable);
#[cfg(target_arch = "x86_64")]
level!(avx2, "avx2,fma,f16c");
#[cfg(target_arch = "x86_64")]
level!(avx512, "avx512f,avx512bw,avx512dq,avx512vl");
#[cfg(target_arch = "x86_64")]
level!(avx512bf16, "avx512bf16,avx512f,avx512bw,avx512dq,avx512vl");
#[cfg(target_arch = "aarch64")]
level!(neon_bf16, "neon,bf16");

macro_rules! at {
    ($elem:ty, $real:ty, $neon:ty, $neon_bf16:expr, $avx2:ty, $avx512:ty, $avx512bf16:expr, $amx:expr) => {
        impl Forms<$elem> {
            /// The forms of `isa`, which the machine that calls them must have.
            pub(crate) const fn at(isa: Isa) -> Self {
                match isa {
                    #[cfg(target_arch = "aarch64")]
                    Isa::Neon => portable::forms::<$elem, Single, $neon, $neon>(),
                    #[cfg(target_arch = "aarch64")]
                    Isa::NeonBf16 => $neon_bf16,
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx2 | Isa::AvxVnni => avx2::forms::<$elem, Single, $avx2, $avx2>(),
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx512Bf16 => $avx512bf16,
                    #[cfg(target_arch = "x86_64")]
                    Isa::Amx => $amx,
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx512 | Isa::Avx512Vnni => avx512::forms::<$elem, Single, $avx512, $avx512>(),
                    _ => portable::forms::<$elem, Single, [$real; 4], [$real; 4]>(),
                }
            }
        }
    };
}
at!(f32, f32, float32x4_t, Self::at(Isa::Neon), __m256, __m512, Self::at(Isa::Avx512), Self::at(Isa::Avx512));
at!(
    bf16,
    f32,
    float32x4_t,
    neon_bf16::forms::<bf16, Pair, Dot, float32x4_t>(),
    __m256,
    __m512,
    avx512bf16::forms::<bf16, Pair, Dot, __m512>(),
    amx::FORMS
);
at!(f64, f64, [f64; 4], Self::at(Isa::Neon), [f64; 4], [f64; 8], Self::at(Isa::Avx512), Self::at(Isa::Avx512));
