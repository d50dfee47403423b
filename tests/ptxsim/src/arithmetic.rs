//! What instructions on registers compute: a function over a warp's lanes for each opcode and type.
//!
//! Approximations (`ex2.approx`, `rsqrt.approx`) are computed as exactly as the host does: nothing may rely on their error.

use crate::lanes::{Bf16, Lanes, Map, Pair, Test, Value, map, test};
use crate::opcode::{Opcode, Type};
use std::cmp::Ordering;

/// A [`Map`] of an expression that is the same in every integer type.
macro_rules! integers {
    ($type:expr, |$($x:ident),+| $e:expr) => {
        match $type {
            Type::U16 => map!(|$($x: u16),+| $e),
            Type::I16 => map!(|$($x: i16),+| $e),
            Type::U32 => map!(|$($x: u32),+| $e),
            Type::I32 => map!(|$($x: i32),+| $e),
            Type::U64 => map!(|$($x: u64),+| $e),
            Type::I64 => map!(|$($x: i64),+| $e),
            _ => return None,
        }
    };
}

/// A [`Map`] of an expression in f32 that also serves bf16 and pairs of them; f64 has its own.
macro_rules! floats {
    ($type:expr, |$($x:ident),+| $single:expr, $double:expr) => {
        match $type {
            Type::F32 => map!(|$($x: f32),+| $single),
            Type::F64 => map!(|$($x: f64),+| $double),
            Type::Bf16 => map!(|$($x: Bf16),+| { $(let $x = $x.0;)+ Bf16($single) }),
            Type::Pair => map!(|$($x: Pair),+| {
                let low = { $(let $x = $x.0.0;)+ Bf16($single) };
                let high = { $(let $x = $x.1.0;)+ Bf16($single) };
                Pair(low, high)
            }),
            _ => return None,
        }
    };
}

fn is_float(of: Type) -> bool {
    matches!(of, Type::F32 | Type::F64 | Type::Bf16 | Type::Pair)
}

/// Modifiers that are seen to, or that change nothing where approximations are exact. Any other may mean anything.
const MODIFIERS: [&str; 22] = [
    "rn", "rz", "rm", "rp", "rna", "rni", "rzi", "rmi", "rpi", "approx", "full", "ftz", "sat", "lo", "hi", "wide",
    "NaN", "l", "r", "wrap", "clamp", "shiftamt",
];

/// The function of an opcode; `None` if there is none here.
pub fn map_of(op: &Opcode) -> Option<Map> {
    let of = op.of()?;
    let known = op.parts().all(|part| Type::parse(part).is_some() || MODIFIERS.contains(&part));
    if !known || (op.has("sat") && of != Type::F32) {
        return None;
    }
    if let Some(direction) = op.one_of(&["rz", "rm", "rp"]).filter(|_| op.name() != "cvt") {
        return directed(op, direction);
    }
    Some(match op.name() {
        "mov" => match of.bytes() {
            2 => map!(|x: u16| x),
            4 => map!(|x: u32| x),
            _ => map!(|x: u64| x),
        },
        "add" if is_float(of) => floats!(of, |a, b| a + b, a + b),
        "sub" if is_float(of) => floats!(of, |a, b| a - b, a - b),
        "mul" if is_float(of) => floats!(of, |a, b| a * b, a * b),
        "fma" | "mad" if is_float(of) => floats!(of, |a, b, c| fused(a, b, c), a.mul_add(b, c)),
        "div" if is_float(of) => floats!(of, |a, b| a / b, a / b),
        "add" => integers!(of, |a, b| a.wrapping_add(b)),
        "sub" => integers!(of, |a, b| a.wrapping_sub(b)),
        "mul" if op.has("wide") => wide_product(of)?,
        "mul" if op.has("hi") => high_product(of)?,
        "mul" => integers!(of, |a, b| a.wrapping_mul(b)),
        "mad" if op.has("wide") => wide_product_sum(of)?,
        "mad" if op.has("hi") => high_product_sum(of)?,
        "mad" => integers!(of, |a, b, c| a.wrapping_mul(b).wrapping_add(c)),
        // The quotient by zero is any number; the hardware's has all bits set.
        "div" => integers!(of, |a, b| if b == 0 { !0 } else { a.wrapping_div(b) }),
        "rem" => integers!(of, |a, b| if b == 0 { a } else { a.wrapping_rem(b) }),
        "min" if is_float(of) && op.has("NaN") => floats!(of, |a, b| least_or_nan(a, b), least_or_nan(a, b)),
        "max" if is_float(of) && op.has("NaN") => floats!(of, |a, b| -least_or_nan(-a, -b), -least_or_nan(-a, -b)),
        "min" if is_float(of) => floats!(of, |a, b| least(a, b), least(a, b)),
        "max" if is_float(of) => floats!(of, |a, b| -least(-a, -b), -least(-a, -b)),
        "min" => integers!(of, |a, b| a.min(b)),
        "max" => integers!(of, |a, b| a.max(b)),
        "abs" if is_float(of) => floats!(of, |a| a.abs(), a.abs()),
        "neg" if is_float(of) => floats!(of, |a| -a, -a),
        "abs" => match of {
            Type::I16 => map!(|a: i16| a.wrapping_abs()),
            Type::I32 => map!(|a: i32| a.wrapping_abs()),
            Type::I64 => map!(|a: i64| a.wrapping_abs()),
            _ => return None,
        },
        "neg" => integers!(of, |a| a.wrapping_neg()),
        "and" => integers!(of, |a, b| a & b),
        "or" => integers!(of, |a, b| a | b),
        "xor" => integers!(of, |a, b| a ^ b),
        "not" => integers!(of, |a| !a),
        "cnot" => integers!(of, |a| if a == 0 { 1 } else { 0 }),
        "copysign" => floats!(of, |a, b| b.copysign(a), b.copysign(a)),
        "cvt" => return conversion(op),
        "rcp" => floats!(of, |a| 1.0 / a, 1.0 / a),
        "sqrt" => floats!(of, |a| a.sqrt(), a.sqrt()),
        "rsqrt" => floats!(of, |a| (1.0 / f64::from(a).sqrt()) as f32, 1.0 / a.sqrt()),
        "ex2" => floats!(of, |a| a.exp2(), a.exp2()),
        "lg2" => floats!(of, |a| a.log2(), a.log2()),
        "sin" => floats!(of, |a| a.sin(), a.sin()),
        "cos" => floats!(of, |a| a.cos(), a.cos()),
        "tanh" => floats!(of, |a| a.tanh(), a.tanh()),
        _ => return bits(op, of),
    })
}

/// Shifts, fields and counts of bits.
fn bits(op: &Opcode, of: Type) -> Option<Map> {
    Some(match (op.name(), of) {
        ("shl", Type::U16) => map!(|a: u16, n: u32| a.checked_shl(n).unwrap_or(0)),
        ("shl", Type::U32) => map!(|a: u32, n: u32| a.checked_shl(n).unwrap_or(0)),
        ("shl", Type::U64) => map!(|a: u64, n: u32| a.checked_shl(n).unwrap_or(0)),
        ("shr", Type::U16) => map!(|a: u16, n: u32| a.checked_shr(n).unwrap_or(0)),
        ("shr", Type::U32) => map!(|a: u32, n: u32| a.checked_shr(n).unwrap_or(0)),
        ("shr", Type::U64) => map!(|a: u64, n: u32| a.checked_shr(n).unwrap_or(0)),
        ("shr", Type::I16) => map!(|a: i16, n: u32| a >> n.min(15)),
        ("shr", Type::I32) => map!(|a: i32, n: u32| a >> n.min(31)),
        ("shr", Type::I64) => map!(|a: i64, n: u32| a >> n.min(63)),
        ("shf", Type::U32) => match (op.has("l"), op.has("wrap")) {
            (true, true) => map!(|low: u32, high: u32, n: u32| (join(low, high) << (n & 31) >> 32) as u32),
            (true, false) => map!(|low: u32, high: u32, n: u32| (join(low, high) << n.min(32) >> 32) as u32),
            (false, true) => map!(|low: u32, high: u32, n: u32| (join(low, high) >> (n & 31)) as u32),
            (false, false) => map!(|low: u32, high: u32, n: u32| (join(low, high) >> n.min(32)) as u32),
        },
        ("bfe", Type::U32) => map!(|a: u32, at: u32, len: u32| field(a.into(), at, len) as u32),
        ("bfe", Type::U64) => map!(|a: u64, at: u32, len: u32| field(a, at, len)),
        ("bfe", Type::I32) => map!(|a: i32, at: u32, len: u32| signed_field(a.into(), at, len, 32) as i32),
        ("bfe", Type::I64) => map!(|a: i64, at: u32, len: u32| signed_field(a, at, len, 64)),
        ("bfi", Type::U32) => map!(|a: u32, b: u32, at: u32, len: u32| insert(a.into(), b.into(), at, len) as u32),
        ("bfi", Type::U64) => map!(|a: u64, b: u64, at: u32, len: u32| insert(a, b, at, len)),
        ("brev", Type::U32) => map!(|a: u32| a.reverse_bits()),
        ("brev", Type::U64) => map!(|a: u64| a.reverse_bits()),
        ("popc", Type::U32) => map!(|a: u32| a.count_ones()),
        ("popc", Type::U64) => map!(|a: u64| a.count_ones()),
        ("clz", Type::U32) => map!(|a: u32| a.leading_zeros()),
        ("clz", Type::U64) => map!(|a: u64| a.leading_zeros()),
        ("bfind", Type::U32) if op.has("shiftamt") => map!(|a: u32| if a == 0 { !0 } else { a.leading_zeros() }),
        ("bfind", Type::U32) => map!(|a: u32| 31u32.wrapping_sub(a.leading_zeros())),
        ("bfind", Type::U64) if !op.has("shiftamt") => map!(|a: u64| 63u32.wrapping_sub(a.leading_zeros())),
        ("prmt", Type::U32) => map!(|a: u32, b: u32, selector: u32| permute(a, b, selector)),
        ("lop3", Type::U32) => map!(|a: u32, b: u32, c: u32, table: u32| lookup(a, b, c, table)),
        _ => return None,
    })
}

fn wide_product(of: Type) -> Option<Map> {
    Some(match of {
        Type::U16 => map!(|a: u16, b: u16| u32::from(a) * u32::from(b)),
        Type::I16 => map!(|a: i16, b: i16| i32::from(a) * i32::from(b)),
        Type::U32 => map!(|a: u32, b: u32| u64::from(a) * u64::from(b)),
        Type::I32 => map!(|a: i32, b: i32| i64::from(a) * i64::from(b)),
        _ => return None,
    })
}

fn wide_product_sum(of: Type) -> Option<Map> {
    Some(match of {
        Type::U16 => map!(|a: u16, b: u16, c: u32| (u32::from(a) * u32::from(b)).wrapping_add(c)),
        Type::I16 => map!(|a: i16, b: i16, c: i32| (i32::from(a) * i32::from(b)).wrapping_add(c)),
        Type::U32 => map!(|a: u32, b: u32, c: u64| (u64::from(a) * u64::from(b)).wrapping_add(c)),
        Type::I32 => map!(|a: i32, b: i32, c: i64| (i64::from(a) * i64::from(b)).wrapping_add(c)),
        _ => return None,
    })
}

fn high_product(of: Type) -> Option<Map> {
    Some(match of {
        Type::U16 => map!(|a: u16, b: u16| ((u32::from(a) * u32::from(b)) >> 16) as u16),
        Type::I16 => map!(|a: i16, b: i16| ((i32::from(a) * i32::from(b)) >> 16) as i16),
        Type::U32 => map!(|a: u32, b: u32| ((u64::from(a) * u64::from(b)) >> 32) as u32),
        Type::I32 => map!(|a: i32, b: i32| ((i64::from(a) * i64::from(b)) >> 32) as i32),
        Type::U64 => map!(|a: u64, b: u64| ((u128::from(a) * u128::from(b)) >> 64) as u64),
        Type::I64 => map!(|a: i64, b: i64| ((i128::from(a) * i128::from(b)) >> 64) as i64),
        _ => return None,
    })
}

fn high_product_sum(of: Type) -> Option<Map> {
    Some(match of {
        Type::U32 => map!(|a: u32, b: u32, c: u32| (((u64::from(a) * u64::from(b)) >> 32) as u32).wrapping_add(c)),
        Type::I32 => map!(|a: i32, b: i32, c: i32| (((i64::from(a) * i64::from(b)) >> 32) as i32).wrapping_add(c)),
        _ => return None,
    })
}

fn join(low: u32, high: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

/// `len` low bits set.
fn ones(len: u32) -> u64 {
    1u64.checked_shl(len).map_or(!0, |bit| bit - 1)
}

fn field(a: u64, at: u32, len: u32) -> u64 {
    a.checked_shr(at & 0xff).unwrap_or(0) & ones(len & 0xff)
}

/// `a` came from `width` bits, its sign extended.
fn signed_field(a: i64, at: u32, len: u32, width: u32) -> i64 {
    let (at, len) = (at & 0xff, len & 0xff);
    if len == 0 {
        return 0;
    }
    let shifted = a >> at.min(63);
    let kept = len.min(width);
    shifted << (64 - kept) >> (64 - kept)
}

/// `b` with the low `len` bits of `a` at bit `at`.
fn insert(a: u64, b: u64, at: u32, len: u32) -> u64 {
    let mask = ones(len & 0xff).checked_shl(at & 0xff).unwrap_or(0);
    (b & !mask) | (a.checked_shl(at & 0xff).unwrap_or(0) & mask)
}

/// Four bytes chosen among the eight of b:a, each perhaps only its sign.
fn permute(a: u32, b: u32, selector: u32) -> u32 {
    let bytes = join(a, b);
    (0..4).fold(0, |word, i| {
        let choice = selector >> (4 * i);
        let byte = (bytes >> (8 * (choice & 7))) as u8;
        let byte = if choice & 8 == 0 { byte } else { ((byte as i8) >> 7) as u8 };
        word | u32::from(byte) << (8 * i)
    })
}

/// Any function of three bits, by its truth table.
fn lookup(a: u32, b: u32, c: u32, table: u32) -> u32 {
    (0..8).filter(|row| table >> row & 1 == 1).fold(0, |word, row| {
        let pick = |x: u32, bit: u32| if row >> bit & 1 == 1 { x } else { !x };
        word | (pick(a, 2) & pick(b, 1) & pick(c, 0))
    })
}

/// The lesser; the other one if one is NaN; -0 is less than +0.
fn least<T: Value + PartialOrd>(a: T, b: T) -> T {
    match a.partial_cmp(&b) {
        Some(Ordering::Less) => a,
        Some(Ordering::Greater) => b,
        Some(Ordering::Equal) => T::of(a.bits() | b.bits()),
        #[allow(clippy::eq_op)]
        None if a == a => a,
        None => b,
    }
}

/// The lesser, NaN if one is.
fn least_or_nan<T: Value + PartialOrd + std::ops::Add<Output = T>>(a: T, b: T) -> T {
    if a.partial_cmp(&b).is_none() { a + b } else { least(a, b) }
}

/// s + e = a b + c exactly, s being the nearest f64.
fn product_sum(a: f32, b: f32, c: f32) -> (f64, f64) {
    let (p, c) = (f64::from(a) * f64::from(b), f64::from(c));
    let s = p + c;
    let t = s - p;
    (s, (p - (s - t)) + (c - t))
}

/// a b + c rounded once to f32, without a call: the f64 sum is rounded to odd, after which rounding again is harmless.
fn fused(a: f32, b: f32, c: f32) -> f32 {
    let (s, e) = product_sum(a, b, c);
    let inexact = e.abs() > 0.0; // Not where e is NaN, nothing being finite.
    let away = (e > 0.0) == (s > 0.0);
    let bits = s.to_bits();
    let step = u64::from(inexact) & !bits & 1;
    f64::from_bits(if away { bits.wrapping_add(step) } else { bits.wrapping_sub(step) }) as f32
}

/// The least f32 not below a b + c.
fn fused_up(a: f32, b: f32, c: f32) -> f32 {
    -fused_down(-a, b, -c)
}

/// The largest f32 not above a b + c.
fn fused_down(a: f32, b: f32, c: f32) -> f32 {
    let (s, e) = product_sum(a, b, c);
    let near = s as f32;
    if f64::from(near) > s || (f64::from(near) == s && e < 0.0) { near.next_down() } else { near }
}

fn fused_to_zero(a: f32, b: f32, c: f32) -> f32 {
    if product_sum(a, b, c).0 < 0.0 { fused_up(a, b, c) } else { fused_down(a, b, c) }
}

/// f32 sums and products that are not rounded to nearest.
fn directed(op: &Opcode, direction: &str) -> Option<Map> {
    macro_rules! in_direction {
        (|$($x:ident),+| $a:expr, $b:expr, $c:expr) => {
            match direction {
                "rz" => map!(|$($x: f32),+| fused_to_zero($a, $b, $c)),
                "rm" => map!(|$($x: f32),+| fused_down($a, $b, $c)),
                _ => map!(|$($x: f32),+| fused_up($a, $b, $c)),
            }
        };
    }
    Some(match (op.name(), op.of()?) {
        ("add", Type::F32) => in_direction!(|a, b| a, 1.0, b),
        ("sub", Type::F32) => in_direction!(|a, b| a, 1.0, -b),
        ("mul", Type::F32) => in_direction!(|a, b| a, b, -0.0),
        ("fma", Type::F32) => in_direction!(|a, b, c| a, b, c),
        _ => return None,
    })
}

/// `cvt`: between any two types, to nearest; to an integer in four directions.
fn conversion(op: &Opcode) -> Option<Map> {
    macro_rules! to {
        ($type:expr, |$x:ident: $from:ty| $e:expr) => {
            match $type {
                Type::U8 => map!(|$x: $from| $e as u8),
                Type::I8 => map!(|$x: $from| $e as i8),
                Type::U16 => map!(|$x: $from| $e as u16),
                Type::I16 => map!(|$x: $from| $e as i16),
                Type::U32 => map!(|$x: $from| $e as u32),
                Type::I32 => map!(|$x: $from| $e as i32),
                Type::U64 => map!(|$x: $from| $e as u64),
                Type::I64 => map!(|$x: $from| $e as i64),
                Type::F32 => map!(|$x: $from| $e as f32),
                Type::F64 => map!(|$x: $from| $e as f64),
                _ => return None,
            }
        };
    }
    macro_rules! rounded {
        ($type:expr, $from:ty) => {
            match op.one_of(&["rni", "rzi", "rmi", "rpi"]) {
                Some("rni") => to!($type, |x: $from| x.round_ties_even()),
                Some("rzi") => to!($type, |x: $from| x.trunc()),
                Some("rmi") => to!($type, |x: $from| x.floor()),
                Some("rpi") => to!($type, |x: $from| x.ceil()),
                _ if is_float($type) => to!($type, |x: $from| x),
                _ => return None,
            }
        };
    }
    if op.one_of(&["rz", "rm", "rp"]).is_some() {
        return None;
    }
    let mut types = op.types();
    let (to, from) = (types.next()?, types.next()?);
    Some(match (to, from) {
        (Type::Pair, Type::F32) => map!(|high: f32, low: f32| Pair(Bf16(low), Bf16(high))),
        (Type::Bf16, Type::F32) => map!(|x: f32| Bf16(x)),
        (Type::F32, Type::Bf16) => map!(|x: Bf16| x.0),
        (Type::Tf32, Type::F32) => map!(|x: u32| x.wrapping_add(0x1000) & !0x1fff),
        (_, Type::U8) => to!(to, |x: u8| x),
        (_, Type::I8) => to!(to, |x: i8| x),
        (_, Type::U16) => to!(to, |x: u16| x),
        (_, Type::I16) => to!(to, |x: i16| x),
        (_, Type::U32) => to!(to, |x: u32| x),
        (_, Type::I32) => to!(to, |x: i32| x),
        (_, Type::U64) => to!(to, |x: u64| x),
        (_, Type::I64) => to!(to, |x: i64| x),
        (_, Type::F32) => rounded!(to, f32),
        (_, Type::F64) => rounded!(to, f64),
        _ => return None,
    })
}

/// The condition of a `setp`.
pub fn test_of(op: &Opcode) -> Option<Test> {
    macro_rules! compare {
        ($type:ty) => {
            match op.part(1) {
                "eq" => test!(|a: $type, b: $type| a == b),
                "ne" => test!(|a: $type, b: $type| a != b),
                "lt" | "lo" => test!(|a: $type, b: $type| a < b),
                "le" | "ls" => test!(|a: $type, b: $type| a <= b),
                "gt" | "hi" => test!(|a: $type, b: $type| a > b),
                "ge" | "hs" => test!(|a: $type, b: $type| a >= b),
                _ => return None,
            }
        };
    }
    macro_rules! compare_floats {
        ($type:ty, $wide:expr) => {
            match op.part(1) {
                "ne" => test!(|a: $type, b: $type| $wide(a) < $wide(b) || $wide(a) > $wide(b)),
                "eq" => test!(|a: $type, b: $type| $wide(a) == $wide(b)),
                "lt" => test!(|a: $type, b: $type| $wide(a) < $wide(b)),
                "le" => test!(|a: $type, b: $type| $wide(a) <= $wide(b)),
                "gt" => test!(|a: $type, b: $type| $wide(a) > $wide(b)),
                "ge" => test!(|a: $type, b: $type| $wide(a) >= $wide(b)),
                "equ" => test!(|a: $type, b: $type| !($wide(a) < $wide(b) || $wide(a) > $wide(b))),
                "neu" => test!(|a: $type, b: $type| $wide(a) != $wide(b)),
                "ltu" => test!(|a: $type, b: $type| !($wide(a) >= $wide(b))),
                "leu" => test!(|a: $type, b: $type| !($wide(a) > $wide(b))),
                "gtu" => test!(|a: $type, b: $type| !($wide(a) <= $wide(b))),
                "geu" => test!(|a: $type, b: $type| !($wide(a) < $wide(b))),
                "num" => test!(|a: $type, b: $type| $wide(a).partial_cmp(&$wide(b)).is_some()),
                "nan" => test!(|a: $type, b: $type| $wide(a).partial_cmp(&$wide(b)).is_none()),
                _ => return None,
            }
        };
    }
    Some(match op.of()? {
        Type::U16 => compare!(u16),
        Type::I16 => compare!(i16),
        Type::U32 => compare!(u32),
        Type::I32 => compare!(i32),
        Type::U64 => compare!(u64),
        Type::I64 => compare!(i64),
        Type::F32 => compare_floats!(f32, |x: f32| x),
        Type::F64 => compare_floats!(f64, |x: f64| x),
        Type::Bf16 => compare_floats!(Bf16, |x: Bf16| x.0),
        _ => return None,
    })
}

/// What an atomic instruction leaves in memory: of the old value and its one or two operands.
pub type Update = fn(u64, u64, u64) -> u64;

/// The function of an `atom` or `red`.
pub fn update_of(op: &Opcode) -> Option<Update> {
    macro_rules! update {
        ($type:ty, |$old:ident, $b:ident| $e:expr) => {{
            let update: Update = |old, b, _| {
                let ($old, $b) = (<$type>::of(old), <$type>::of(b));
                <$type>::bits($e)
            };
            update
        }};
    }
    macro_rules! any_width {
        ($type:expr, |$old:ident, $b:ident| $e:expr) => {
            match $type {
                Type::U32 => update!(u32, |$old, $b| $e),
                Type::I32 => update!(i32, |$old, $b| $e),
                Type::U64 => update!(u64, |$old, $b| $e),
                Type::I64 => update!(i64, |$old, $b| $e),
                _ => return None,
            }
        };
    }
    let of = op.of()?;
    Some(match op.one_of(&["add", "min", "max", "and", "or", "xor", "exch", "cas", "inc", "dec"])? {
        "add" if of == Type::F32 => update!(f32, |old, b| old + b),
        "add" if of == Type::F64 => update!(f64, |old, b| old + b),
        "add" => any_width!(of, |old, b| old.wrapping_add(b)),
        "min" => any_width!(of, |old, b| old.min(b)),
        "max" => any_width!(of, |old, b| old.max(b)),
        "and" => any_width!(of, |old, b| old & b),
        "or" => any_width!(of, |old, b| old | b),
        "xor" => any_width!(of, |old, b| old ^ b),
        "exch" => |_, b, _| b,
        "cas" if of.bytes() == 4 => |old, b, c| if old == u64::from(b as u32) { c } else { old },
        "cas" => |old, b, c| if old == b { c } else { old },
        "inc" => update!(u32, |old, b| if old >= b { 0 } else { old + 1 }),
        _ => update!(u32, |old, b| if old == 0 || old > b { b } else { old - 1 }),
    })
}

/// Subnormal f32 become zeros of their sign.
pub fn flush(lanes: &Lanes) -> Lanes {
    lanes.map(|x| if x as u32 & 0x7f80_0000 == 0 { x & 0x8000_0000 } else { x })
}

/// f32 within +0 and 1, NaN to +0.
pub fn saturate(lanes: &mut Lanes) {
    lanes.iter_mut().for_each(|x| *x = if f32::of(*x) > 0.0 { f32::of(*x).min(1.0).bits() } else { 0 });
}
