//! A register of a whole warp, and functions over all its lanes at once.

/// Threads of a warp.
pub const LANES: usize = 32;
/// All of them.
pub const ALL: u32 = !0;

/// One register of every lane. A value narrower than 64 bits lies in the low bits; what reads it ignores the others.
pub type Lanes = [u64; LANES];

/// An instruction's effect on registers: up to four sources, one result.
pub type Map = fn([&Lanes; 4], &mut Lanes);

/// An instruction's effect on a predicate: the lanes for which it holds.
pub type Test = fn([&Lanes; 2]) -> u32;

/// A type that a register may hold.
pub trait Value: Copy {
    /// From a register's low bits.
    fn of(register: u64) -> Self;
    /// As a register holds it, the bits above cleared.
    fn bits(self) -> u64;
}

macro_rules! integer_values {
    ($($type:ty as $unsigned:ty),*) => {$(
        impl Value for $type {
            fn of(register: u64) -> Self {
                register as Self
            }
            fn bits(self) -> u64 {
                self as $unsigned as u64
            }
        }
    )*};
}
integer_values!(u8 as u8, i8 as u8, u16 as u16, i16 as u16, u32 as u32, i32 as u32, u64 as u64, i64 as u64);

impl Value for f32 {
    fn of(register: u64) -> Self {
        Self::from_bits(register as u32)
    }
    fn bits(self) -> u64 {
        self.to_bits().into()
    }
}

impl Value for f64 {
    fn of(register: u64) -> Self {
        Self::from_bits(register)
    }
    fn bits(self) -> u64 {
        self.to_bits()
    }
}

/// A bf16, computed with as f32.
#[derive(Clone, Copy)]
pub struct Bf16(pub f32);

impl Value for Bf16 {
    fn of(register: u64) -> Self {
        Self(f32::from_bits((register as u32) << 16))
    }
    /// To nearest, ties to even; the NaN is the hardware's.
    fn bits(self) -> u64 {
        let bits = self.0.to_bits();
        let odd = bits >> 16 & 1;
        u64::from(if self.0.is_nan() { 0x7fff } else { bits.wrapping_add(0x7fff + odd) >> 16 })
    }
}

/// Two bf16: the low half of a word and the high one.
#[derive(Clone, Copy)]
pub struct Pair(pub Bf16, pub Bf16);

impl Value for Pair {
    fn of(register: u64) -> Self {
        Self(Bf16::of(register), Bf16::of(register >> 16))
    }
    fn bits(self) -> u64 {
        self.0.bits() | self.1.bits() << 16
    }
}

/// A [`Map`] of an expression in one to four typed arguments.
macro_rules! map {
    (|$a:ident: $ta:ty| $e:expr) => {
        map!(@ |from, lane| { let $a = <$ta as Value>::of(from[0][lane]); } $e)
    };
    (|$a:ident: $ta:ty, $b:ident: $tb:ty| $e:expr) => {
        map!(@ |from, lane| {
            let $a = <$ta as Value>::of(from[0][lane]);
            let $b = <$tb as Value>::of(from[1][lane]);
        } $e)
    };
    (|$a:ident: $ta:ty, $b:ident: $tb:ty, $c:ident: $tc:ty| $e:expr) => {
        map!(@ |from, lane| {
            let $a = <$ta as Value>::of(from[0][lane]);
            let $b = <$tb as Value>::of(from[1][lane]);
            let $c = <$tc as Value>::of(from[2][lane]);
        } $e)
    };
    (|$a:ident: $ta:ty, $b:ident: $tb:ty, $c:ident: $tc:ty, $d:ident: $td:ty| $e:expr) => {
        map!(@ |from, lane| {
            let $a = <$ta as Value>::of(from[0][lane]);
            let $b = <$tb as Value>::of(from[1][lane]);
            let $c = <$tc as Value>::of(from[2][lane]);
            let $d = <$td as Value>::of(from[3][lane]);
        } $e)
    };
    (@ |$from:ident, $lane:ident| { $($bind:stmt;)* } $e:expr) => {{
        let map: Map = |$from, to| {
            for $lane in 0..$crate::lanes::LANES {
                $($bind)*
                to[$lane] = Value::bits($e);
            }
        };
        map
    }};
}

/// A [`Test`] of a condition on two typed arguments.
macro_rules! test {
    (|$a:ident: $ta:ty, $b:ident: $tb:ty| $e:expr) => {{
        let test: Test = |from| {
            let mut holds = 0;
            for lane in 0..$crate::lanes::LANES {
                let $a = <$ta as Value>::of(from[0][lane]);
                let $b = <$tb as Value>::of(from[1][lane]);
                holds |= u32::from($e) << lane;
            }
            holds
        };
        test
    }};
}

pub(crate) use {map, test};

/// The lanes of a mask, from the lowest.
pub fn lanes(mut mask: u32) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let lane = mask.trailing_zeros() as usize;
        mask &= mask.wrapping_sub(1);
        (lane < LANES).then_some(lane)
    })
}

/// Writes the lanes of `mask`.
pub fn blend(to: &mut Lanes, from: &Lanes, mask: u32) {
    if mask == ALL {
        *to = *from;
        return;
    }
    for lane in 0..LANES {
        let chosen = 0u64.wrapping_sub(u64::from(mask >> lane & 1));
        to[lane] = (from[lane] & chosen) | (to[lane] & !chosen);
    }
}
