//! Instructions on registers against Rust's own arithmetic.

mod common;
use common::{Number, Random, get, gpu, pointers, put};

const THREADS: usize = 256;

/// Runs `entry` on one block and compares its rows of `stride` with what `expect` says of each thread's operands.
fn compare<T: Number + PartialEq + std::fmt::Debug>(
    entry: &str,
    operands: [&[T]; 2],
    stride: usize,
    expect: impl Fn(T, T) -> Vec<T>,
    equal: impl Fn(T, T) -> bool,
) {
    let Some(mut gpu) = gpu(entry, "arithmetic.cu") else { return };
    let threads = operands[0].len();
    let out = gpu.empty(threads * stride * size_of::<T>());
    let params = pointers(&[out, put(&mut gpu, operands[0]), put(&mut gpu, operands[1])]);
    gpu.run(entry, [1, 1, 1], [threads as u32, 1, 1], 0, &params).unwrap();
    let got = get::<T>(&gpu, out);
    for (i, (&a, &b)) in operands[0].iter().zip(operands[1]).enumerate() {
        for (j, want) in expect(a, b).into_iter().enumerate() {
            let got = got[i * stride + j];
            assert!(equal(got, want), "{entry}, result {j} of {a:?} and {b:?}: {got:?} is not {want:?}");
        }
    }
}

fn byte_perm(a: u32, b: u32, selector: u32) -> u32 {
    let bytes = [a.to_le_bytes(), b.to_le_bytes()].concat();
    u32::from_le_bytes(std::array::from_fn(|i| {
        let choice = selector >> (4 * i) & 15;
        let byte = bytes[choice as usize & 7];
        if choice & 8 == 0 {
            byte
        } else if byte >= 128 {
            255
        } else {
            0
        }
    }))
}

#[test]
fn integers_are_those_of_rust() {
    let mut random = Random(1);
    let (left, right) = (random.u32s(THREADS), random.u32s(THREADS));
    let expect = |a: u32, b: u32| {
        let (n, s, t) = (b % 40, a as i32, b as i32);
        let both = u64::from(b) << 32 | u64::from(a);
        vec![
            a.wrapping_add(b),
            a.wrapping_sub(b),
            a.wrapping_mul(b),
            ((u64::from(a) * u64::from(b)) >> 32) as u32,
            ((i64::from(s) * i64::from(t)) >> 32) as u32,
            a / (b | 1),
            a % (b | 1),
            s.wrapping_div(t | 1) as u32,
            s.wrapping_rem(t | 1) as u32,
            a.min(b),
            a.max(b),
            s.min(t) as u32,
            s.max(t) as u32,
            a & b,
            a | b,
            a ^ b,
            !a,
            s.wrapping_neg() as u32,
            s.wrapping_abs() as u32,
            a.count_ones(),
            a.leading_zeros(),
            a.reverse_bits(),
            a.wrapping_mul(b).wrapping_add(n),
            u32::from(a < b),
            u32::from(s < t),
            u32::from(a == b),
            byte_perm(a, b, 0x6431),
            byte_perm(a, b, b & 0x7777),
            (both << (n % 32) >> 32) as u32,
            (both >> (n % 32)) as u32,
            (both << n.min(32) >> 32) as u32,
            (both >> n.min(32)) as u32,
            (a & b) ^ (!a | n),
            a as i8 as u32,
            a as i16 as u32,
            a as u8 as u32,
            if a == 0 { 0 } else { a.trailing_zeros() + 1 },
        ]
    };
    compare("integers", [&left, &right], 64, expect, |a, b| a == b);
}

#[test]
fn fields_and_shifts_past_the_width_are_as_the_manual_says() {
    let mut random = Random(2);
    let (left, right) = (random.u32s(THREADS), random.u32s(THREADS));
    let expect = |a: u32, b: u32| {
        let (at, len) = (b % 37, b / 64 % 37);
        let bit = |i: u32| if i < 32 { a >> i & 1 } else { 0 };
        let field = (0..len.min(32)).fold(0, |word, i| word | bit(at + i) << i);
        // Past the field every bit is the sign: the field's highest bit within the word.
        let sign = if len == 0 { 0 } else { bit((at + len - 1).min(31)) };
        let signed = (0..32).fold(0, |word, i| word | if i < len && at + i < 32 { bit(at + i) } else { sign } << i);
        let inside = |i: u32| i >= at && i < at + len;
        let inserted = (0..32).fold(0, |word, i| word | if inside(i) { a >> (i - at) & 1 } else { b >> i & 1 } << i);
        let c = at * 0x0101_0101;
        let shifted =
            [a.checked_shl(at).unwrap_or(0), a.checked_shr(at).unwrap_or(0), ((a as i32) >> at.min(31)) as u32];
        [&shifted[..], &[field, signed, inserted, (a & b) | (!a & c), if a < b { 1 } else { 2 }]].concat()
    };
    compare("fields", [&left, &right], 8, expect, |a, b| a == b);
}

#[test]
fn integers_of_64_bits_are_those_of_rust() {
    let mut random = Random(3);
    let mut draw = || (0..THREADS).map(|_| random.next()).collect::<Vec<u64>>();
    let (left, right) = (draw(), draw());
    let expect = |a: u64, b: u64| {
        let (s, t, n) = (a as i64, b as i64, b & 63);
        vec![
            a.wrapping_add(b),
            a.wrapping_sub(b),
            a.wrapping_mul(b),
            ((u128::from(a) * u128::from(b)) >> 64) as u64,
            ((i128::from(s) * i128::from(t)) >> 64) as u64,
            a / (b | 1),
            a % (b | 1),
            s.wrapping_div(t | 1) as u64,
            a << n,
            a >> n,
            (s >> n) as u64,
            u64::from(a as u32) * u64::from(b as u32),
            (i64::from(a as i32) * i64::from(b as i32)) as u64,
            a.count_ones().into(),
            a.leading_zeros().into(),
            a.reverse_bits(),
            u64::from(s < t),
            a as i32 as u64,
            a.min(b),
        ]
    };
    compare("wide", [&left, &right], 32, expect, |a, b| a == b);
}

const EDGES: [f32; 10] = [0.0, -0.0, 1.0, -1.5, 2.5, 3.5, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 1e-41];

/// Every pair of edges, then random numbers of any size.
fn float_operands(seed: u64) -> (Vec<f32>, Vec<f32>) {
    let mut random = Random(seed);
    let edges = EDGES.iter().flat_map(|&a| EDGES.iter().map(move |&b| (a, b)));
    let mut pairs: Vec<(f32, f32)> = edges.collect();
    pairs.resize_with(THREADS, || (random.float(), f32::from_bits(random.next() as u32 & 0xbfff_ffff)));
    pairs.into_iter().unzip()
}

fn same_float(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan())
}

fn least(a: f32, b: f32) -> f32 {
    match (a.is_nan(), b.is_nan()) {
        (true, _) => b,
        (_, true) => a,
        _ if a == b => {
            if a.is_sign_negative() {
                a
            } else {
                b
            }
        }
        _ => {
            if a < b {
                a
            } else {
                b
            }
        }
    }
}

#[test]
fn floats_are_those_of_rust() {
    let (left, right) = float_operands(4);
    let expect = |a: f32, b: f32| {
        let nan = a.is_nan() || b.is_nan();
        // a b + 0.1 is near + rest: the product is exact in f64, the sum's rest is what its lesser part lost.
        let (product, tenth) = (f64::from(a) * f64::from(b), f64::from(0.1f32));
        let near = product + tenth;
        let rest = if product.abs() > tenth { tenth - (near - product) } else { product - (near - tenth) };
        let single = near as f32;
        let error = f64::from(single) - near;
        let down = if error > 0.0 || (error == 0.0 && rest < 0.0) { single.next_down() } else { single };
        let up = if error < 0.0 || (error == 0.0 && rest > 0.0) { single.next_up() } else { single };
        vec![
            a + b,
            a - b,
            a * b,
            a / b,
            a.mul_add(b, 0.1),
            down,
            up,
            if near > 0.0 { down } else { up },
            least(a, b),
            -least(-a, -b),
            if nan { f32::NAN } else { least(a, b) },
            if nan { f32::NAN } else { -least(-a, -b) },
            a.abs().sqrt(),
            1.0 / a,
            a.abs(),
            -a,
            a.floor(),
            a.ceil(),
            a.trunc(),
            a.round_ties_even(),
            if a.is_nan() { 0.0 } else { a.clamp(0.0, 1.0).abs() },
            a.copysign(b),
            if a < b { 1.0 } else { 2.0 },
            if a >= b { 1.0 } else { 2.0 },
            if a != b { 1.0 } else { 2.0 },
            a as i32 as f32,
            a as u32 as f32,
            a.trunc() as i64 as f32,
            (f64::from(a) * f64::from(b)) as f32,
        ]
    };
    // __float2ll of NaN and of what is too large is the hardware's own number: not compared.
    let results = |a: f32, b: f32| {
        let mut results = expect(a, b);
        if !a.is_finite() {
            results.truncate(27);
        }
        results
    };
    compare("floats", [&left, &right], 32, results, same_float);
}

#[test]
fn doubles_are_those_of_rust() {
    let (left, right) = float_operands(5);
    let (left, right): (Vec<f64>, Vec<f64>) = (
        left.iter().map(|&x| f64::from(x) * 1.000_000_01).collect(),
        right.iter().map(|&x| f64::from(x) / 3.0).collect(),
    );
    let expect = |a: f64, b: f64| {
        let results = [a + b, a - b, a * b, a / b, a.mul_add(b, 0.1)];
        let rest = [a.abs().sqrt(), a as f32 as f64, a.trunc() as i64 as f64, a.floor()];
        let (min, max) = if a == b { (f64::NAN, f64::NAN) } else { (a.min(b), a.max(b)) };
        [&results[..], &[min, max], &rest[..if a.is_finite() { 4 } else { 2 }]].concat()
    };
    // Of equal numbers the lesser is either, but for the sign of zero, which the test of f32 looks at.
    let same = |a: f64, b: f64| a.to_bits() == b.to_bits() || b.is_nan();
    compare("doubles", [&left, &right], 16, expect, same);
}

#[test]
fn functions_are_within_a_few_units_in_the_last_place() {
    let Some(mut gpu) = gpu("functions", "arithmetic.cu") else { return };
    let inputs = Random(6).floats(64);
    let (out, input) = (gpu.empty(64 * 8 * 4), put(&mut gpu, &inputs));
    gpu.run("functions", [1, 1, 1], [64, 1, 1], 0, &pointers(&[out, input])).unwrap();
    let got = get::<f32>(&gpu, out);
    for (i, &x) in inputs.iter().enumerate() {
        let (x, large) = (f64::from(x), f64::from(x * 1e6));
        let expect = [x.exp2(), x.abs().log2(), 1.0 / x.abs().sqrt(), x.exp(), large.sin(), x.abs().ln()];
        for (j, want) in expect.into_iter().enumerate() {
            let got = f64::from(got[i * 8 + j]);
            let close = (got - want).abs() <= 4e-7 * want.abs().max(0.3);
            assert!(close || got == want, "function {j} of {x}: {got} is not {want}");
        }
    }
}

/// Round to nearest even, by comparing the two neighbours.
fn bf16(x: f32) -> u32 {
    if x.is_nan() {
        return 0x7fff;
    }
    let low = x.to_bits() >> 16;
    let (below, above) = (f64::from(f32::from_bits(low << 16)), f64::from(f32::from_bits((low + 1) << 16)));
    if x.is_infinite() {
        return low;
    }
    let above = if above.is_infinite() { (2f64).powi(128) * below.signum() } else { above };
    let (down, up) = ((f64::from(x) - below).abs(), (above - f64::from(x)).abs());
    if down < up || (down == up && low.is_multiple_of(2)) { low } else { low + 1 }
}

#[test]
fn bf16_is_rounded_to_nearest_even() {
    let Some(mut gpu) = gpu("bf16s", "arithmetic.cu") else { return };
    let (left, right) = float_operands(7);
    let (out, a, b) = (gpu.empty(THREADS * 16), put(&mut gpu, &left), put(&mut gpu, &right));
    gpu.run("bf16s", [1, 1, 1], [THREADS as u32, 1, 1], 0, &pointers(&[out, a, b])).unwrap();
    for ((got, &a), &b) in get::<u32>(&gpu, out).chunks(4).zip(&left).zip(&right) {
        assert_eq!(got[..3], [bf16(a) << 16 | bf16(b), bf16(a), bf16(b)], "{a} and {b}");
        let square = |half: u32| {
            let x = f32::from_bits(half << 16);
            bf16(x.mul_add(x, x))
        };
        assert_eq!(got[3], square(bf16(a)) << 16 | square(bf16(b)), "squares of {a} and {b}");
    }
}

#[test]
fn branches_part_and_meet_again() {
    let Some(mut gpu) = gpu("choices", "arithmetic.cu") else { return };
    let inputs = Random(8).u32s(100);
    let (out, input) = (put(&mut gpu, &[7u32; 100]), put(&mut gpu, &inputs));
    gpu.run("choices", [1, 1, 1], [100, 1, 1], 0, &pointers(&[out, input])).unwrap();
    let expect = |x: u32| match x % 9 {
        0 => x.wrapping_mul(3).wrapping_add(1),
        1 => x ^ 0x55,
        2 => {
            let (mut x, mut j) = (x, 0);
            while j < x % 5 {
                x = x.wrapping_add(j.wrapping_mul(x));
                j += 1;
            }
            x
        }
        3 => x / 7,
        4 if x & 8 != 0 => !x,
        4 => x.wrapping_sub(5),
        5 => 100,
        6 => x << 3,
        7 => 7,
        _ => 0,
    };
    assert_eq!(get::<u32>(&gpu, out), inputs.iter().map(|&x| expect(x)).collect::<Vec<_>>());
}
