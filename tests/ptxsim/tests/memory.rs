//! Loads and stores of every space, parameters, geometry, and functions that are called.

mod common;
use common::{Random, get, gpu, gpus, pointers, put};
use ptxsim::Options;

#[test]
fn vectors_and_small_types_are_loaded_and_stored() {
    let Some(mut gpu) = gpu("vectors", "memory.cu") else { return };
    let from = Random(1).u32s(64 * 4);
    let bytes: Vec<i8> = (0..128).map(|i| (i as i8).wrapping_mul(37)).collect();
    let (to, narrow) = (gpu.empty(64 * 16), gpu.empty(64 * 4));
    let params = pointers(&[to, put(&mut gpu, &from), narrow, put(&mut gpu, &bytes)]);
    gpu.run("vectors", [1, 1, 1], [64, 1, 1], 0, &params).unwrap();
    let turned: Vec<u32> = from.chunks(4).flat_map(|v| v.iter().rev().copied()).collect();
    assert_eq!(get::<u32>(&gpu, to), turned);
    assert_eq!(get::<i16>(&gpu, narrow), bytes.iter().map(|&byte| byte.into()).collect::<Vec<i16>>());
}

#[test]
fn threads_have_arrays_of_their_own_and_read_constant_tables() {
    let Some(mut gpu) = gpu("own", "memory.cu") else { return };
    let input = Random(2).u32s(40 * 8);
    let (out, from) = (gpu.empty(40 * 64), put(&mut gpu, &input));
    gpu.run("own", [1, 1, 1], [40, 1, 1], 0, &pointers(&[out, from])).unwrap();
    let expect = input.chunks(8).flat_map(|choices| {
        let mut bins: Vec<u32> = (0..16).collect();
        choices.iter().for_each(|x| bins[*x as usize % 16] += (x % 8).pow(2));
        bins
    });
    assert_eq!(get::<u32>(&gpu, out), expect.collect::<Vec<_>>());
}

#[test]
fn functions_are_called_with_their_own_registers() {
    let Some(mut gpu) = gpu("called", "memory.cu") else { return };
    let input = Random(3).u32s(64);
    let (out, from) = (gpu.empty(256), put(&mut gpu, &input));
    gpu.run("called", [1, 1, 1], [64, 1, 1], 0, &pointers(&[out, from])).unwrap();
    let mix = |x: u32, rounds: u32| {
        (0..rounds).fold(x, |x, j| if x % 2 == 1 { x.wrapping_mul(5).wrapping_add(1) } else { (x / 2).wrapping_add(j) })
    };
    let expect = (0..).zip(&input).map(|(i, &x)| mix(x, i % 4) ^ mix(x.wrapping_add(1), 3));
    assert_eq!(get::<u32>(&gpu, out), expect.collect::<Vec<_>>());
}

#[test]
fn generic_addresses_reach_shared_and_global_memory() {
    let Some(mut gpu) = gpu("generic", "memory.cu") else { return };
    for which in 0..2u32 {
        let out = gpu.empty(128);
        let params = [pointers(&[out]), which.to_le_bytes().to_vec()].concat();
        gpu.run("generic", [1, 1, 1], [32, 1, 1], 128, &params).unwrap();
        let scales = [1.5, -2.0, 0.25];
        let first = |i: usize| if which == 0 { 31.0 - i as f32 } else { scales[i % 3] };
        assert_eq!(get::<f32>(&gpu, out), (0..32).map(|i| first(i) + 131.0 - i as f32).collect::<Vec<_>>());
    }
}

#[test]
fn atomics_of_all_threads_end_in_one_value_in_any_order() {
    let options = [0, 1, 7].map(|seed| Options { check: true, seed });
    for gpu in &mut gpus("atomics", "memory.cu", &options) {
        let (out, sum, total) = (put(gpu, &[0u32, 0, 99, 0, 0, 0, 0, 0]), put(gpu, &[0u64]), put(gpu, &[0.0f32]));
        gpu.run("atomics", [3, 1, 1], [50, 1, 1], 0, &pointers(&[out, sum, total])).unwrap();
        let all = (0..150).sum::<u32>();
        let xor = (0..150).fold(0, |xor, i| xor ^ i);
        assert_eq!(get::<u32>(gpu, out), [all, 149, 0, !0, xor, 150 % 10, 300, 77]);
        assert_eq!((get::<u64>(gpu, sum), get::<f32>(gpu, total)), (vec![u64::from(all) << 20], vec![75.0]));
    }
}

#[test]
fn parameters_lie_as_c_lays_them_out() {
    let Some(mut gpu) = gpu("parameters", "memory.cu") else { return };
    let out = gpu.empty(24);
    let mut params = pointers(&[out]);
    params.extend([200, 0, 0, 0, 0, 0, 0, 0]); // an unsigned char, up to the struct's alignment
    params.extend([3u32, 5, 7, 0].iter().flat_map(|x| x.to_le_bytes()));
    params.extend(0.5f64.to_le_bytes());
    params.extend([9, 0, 0, 0, 0, 0, 0, 0]);
    params.extend(2u32.to_le_bytes());
    gpu.run("parameters", [1, 1, 1], [1, 1, 1], 0, &params).unwrap();
    assert_eq!(get::<f64>(&gpu, out), [200.0, 3.5, 9.0]);
}

#[test]
fn threads_and_blocks_have_three_dimensions() {
    let Some(mut gpu) = gpu("geometry", "memory.cu") else { return };
    let (grid, block) = ([2, 3, 2], [5, 3, 4]);
    let out = gpu.empty(12 * 60 * 16);
    gpu.run("geometry", grid, block, 0, &pointers(&[out])).unwrap();
    for (i, got) in get::<u32>(&gpu, out).chunks(4).enumerate() {
        let thread = i as u32 % 60;
        assert_eq!(got, [thread % 5, thread / 5 % 3, thread / 15, thread % 32]);
    }
}

#[test]
fn buffers_are_written_and_freed() {
    let Some(mut gpu) = gpu("buffers", "memory.cu") else { return };
    let at = put(&mut gpu, &[1u32, 2, 3]);
    gpu.write(at + 4, &7u32.to_le_bytes());
    assert_eq!(get::<u32>(&gpu, at), [1, 7, 3]);
    gpu.free(at);
    let out = gpu.empty(256);
    let report = gpu.run("called", [1, 1, 1], [1, 1, 1], 0, &pointers(&[out, at])).unwrap_err();
    assert!(report.contains("which is freed"), "{report}");
}
