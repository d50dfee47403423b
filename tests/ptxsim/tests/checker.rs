//! Every kind of fault is found where it was put, and not in the same kernel without it.

mod common;
use common::{Random, get, gpu, gpus, pointers, put};
use ptxsim::{Gpu, Options};

const SEEDS: [u64; 4] = [0, 1, 2, 3];

/// What a kernel is launched with, and what its fault is called.
struct Case {
    name: &'static str,
    found: &'static str,
    blocks: u32,
    shared: u32,
    /// Behind the addresses of an output and an input.
    number: Option<u32>,
    /// Whether there is an input.
    input: bool,
}

const fn case(name: &'static str, found: &'static str) -> Case {
    Case { name, found, blocks: 1, shared: 0, number: None, input: true }
}

const CASES: [Case; 13] = [
    case("read_after_write", "race: reads what block 0 thread"),
    case("write_after_read", "race: writes what block 0 thread"),
    case("within_a_warp", "race: reads what block 0 thread"),
    case("weak_wait", "touches what a cp.async of block 0 thread"),
    Case { number: Some(100), blocks: 2, ..case("out_of_bounds", "4 bytes at offset 400 of buffer 0, which has 400") },
    Case { shared: 256, input: false, ..case("out_of_shared", "4 bytes at 0x100 of shared memory, which has 256") },
    case("uninitialised", "uninitialised read (shared, 4 bytes at 0x0)"),
    Case { input: false, ..case("half_a_warp", "lanes 0xffffffff are named, lanes 0x0000ffff are here") },
    Case { input: false, ..case("barrier_of_a_warp", "a barrier that is never complete: 1 warps wait") },
    Case { input: false, number: Some(40), ..case("barrier_of_some", "a barrier with 8 of the warp's threads (") },
    Case { input: false, blocks: 4, ..case("between_blocks", "race: writes what block") },
    case("misaligned", "16 bytes at 0x1000001000000074, which is not their multiple"),
    case("trapped", "a trap"),
];

fn run(gpu: &mut Gpu, case: &Case, twin: &str) -> Result<(), String> {
    let out = gpu.empty(if case.name == "out_of_bounds" { 400 } else { 4096 });
    let mut addresses = vec![out];
    if case.input {
        addresses.push(put(gpu, &(0..512).collect::<Vec<u32>>()));
    }
    let mut params = pointers(&addresses);
    params.extend(case.number.iter().flat_map(|number| number.to_le_bytes()));
    let entry = format!("{}_{twin}", case.name);
    let result = gpu.run(&entry, [case.blocks, 1, 1], [64, 1, 1], case.shared, &params);
    addresses.into_iter().for_each(|address| gpu.free(address));
    result
}

fn options(check: bool) -> Vec<Options> {
    SEEDS.map(|seed| Options { check, seed }).to_vec()
}

#[test]
fn every_fault_is_found_and_its_repair_is_clean() {
    for case in &CASES {
        // A new device for each kernel, so that buffers have the same numbers.
        for (gpu, seed) in gpus(case.name, "faults.cu", &options(true)).iter_mut().zip(SEEDS) {
            let report = run(gpu, case, "faulty").expect_err(case.name);
            assert!(report.contains(case.found), "{}, seed {seed}:\n{report}", case.name);
            run(gpu, case, "sound").unwrap_or_else(|report| panic!("{}, seed {seed}, repaired:\n{report}", case.name));
        }
    }
}

#[test]
fn unchecked_runs_have_no_races_but_the_rest_is_found() {
    for (gpu, case) in
        gpus("unchecked", "faults.cu", &CASES.map(|_| Options { check: false, seed: 0 })).iter_mut().zip(&CASES)
    {
        let only_checked =
            case.found.starts_with("race") || case.found.starts_with("uninit") || case.found.starts_with("touches");
        assert_eq!(run(gpu, case, "faulty").is_ok(), only_checked, "{}", case.name);
    }
}

#[test]
fn what_a_launch_leaves_unwritten_is_found_by_the_next() {
    let Some(mut gpu) = gpu("unwritten", "faults.cu") else { return };
    for (twin, clean) in [("faulty", false), ("sound", true)] {
        let (middle, out) = (gpu.empty(256), gpu.empty(256));
        gpu.run(&format!("unwritten_{twin}"), [1, 1, 1], [64, 1, 1], 0, &pointers(&[middle])).unwrap();
        let result = gpu.run("reads_it", [1, 1, 1], [64, 1, 1], 0, &pointers(&[out, middle]));
        assert_eq!(result.is_ok(), clean, "{twin}: {result:?}");
        assert!(clean || result.unwrap_err().contains("thread 5: uninitialised read (global, 4 bytes"));
    }
}

#[test]
fn barriers_of_some_warps_order_those_and_no_others() {
    for (gpu, seed) in gpus("named", "faults.cu", &options(true)).iter_mut().zip(SEEDS) {
        let values: Vec<u32> = (0..32).collect();
        let (out, input) = (gpu.empty(4 * 128), put(gpu, &values));
        gpu.run("named_barriers_sound", [1, 1, 1], [64, 1, 1], 0, &pointers(&[out, input])).unwrap();
        let expect: Vec<u32> = (0..4).flat_map(|round| values.iter().rev().map(move |x| x * round)).collect();
        assert_eq!(get::<u32>(gpu, out), expect, "seed {seed}");
        let report = gpu.run("named_barriers_faulty", [1, 1, 1], [64, 1, 1], 0, &pointers(&[out, input])).unwrap_err();
        assert!(report.contains("race: writes what") || report.contains("race: reads what"), "seed {seed}:\n{report}");
    }
}

#[test]
fn a_report_names_kernel_block_thread_and_both_lines() {
    let Some(mut gpu) = gpu("report", "faults.cu") else { return };
    let out = gpu.empty(4096);
    let input = put(&mut gpu, &Random(1).u32s(64));
    let report = gpu.run("read_after_write_faulty", [1, 1, 1], [64, 1, 1], 0, &pointers(&[out, input])).unwrap_err();
    let source = include_str!("../kernels/faults.cu");
    let line = 1 + source.lines().position(|line| line.contains("tile[THREADS - 1 - threadIdx.x];")).unwrap();
    for part in
        ["read_after_write_faulty, block 0, thread ", "PTX line ", &format!("faults.cu:{line}, called at"), "ld.shared"]
    {
        assert!(report.contains(part), "no `{part}` in\n{report}");
    }
}

#[test]
fn launches_that_do_not_fit_and_modules_that_are_not_understood_are_errors() {
    let header = ".version 9.0\n.target sm_80\n.address_size 64\n";
    let unknown = format!(
        "{header}.visible .entry k(\n.param .u32 k_0\n)\n{{\n.reg .b32 %r<3>;\nfrobnicate.b32 %r1, %r2;\nret;\n}}\n"
    );
    let error = Gpu::load(&unknown).err().unwrap();
    assert!(error.contains("line 9: no support for the instruction in `frobnicate.b32 %r1, %r2`"), "{error}");
    let error = Gpu::load(&unknown.replace("frobnicate.b32", "mov.b32").replace("%r2", "%r7")).err().unwrap();
    assert!(error.contains("unknown name `%r7`"), "{error}");
    let known = unknown.replace("frobnicate.b32", "mov.b32").replace("ret;", "bra $there;\n$there: ret;");
    let mut gpu = Gpu::load(&known).unwrap();
    gpu.run("k", [1, 1, 1], [32, 1, 1], 0, &[0; 4]).unwrap();
    assert!(gpu.run("k", [1, 1, 1], [32, 1, 1], 0, &[0; 3]).is_err());
    assert!(gpu.run("k", [1, 0, 1], [32, 1, 1], 0, &[0; 4]).is_err());
    assert!(gpu.run("k", [1, 1, 1], [2048, 1, 1], 0, &[0; 4]).is_err());
    assert!(gpu.run("j", [1, 1, 1], [32, 1, 1], 0, &[0; 4]).is_err());
    for len in 0..known.len() {
        let _ = Gpu::load(&known[..len]); // Cut anywhere, it may be an error and never a panic.
    }
}

/// The compiler makes tables of branches of large switches only: this one is written by hand.
const TABLE: &str = "
.version 9.0
.target sm_80
.address_size 64
.visible .entry k(.param .u64 k_0)
{
    .reg .pred %p<2>;
    .reg .b32 %r<4>;
    .reg .b64 %rd<4>;
    ld.param.u64 %rd1, [k_0];
    mov.u32 %r1, %tid.x;
    mul.wide.u32 %rd2, %r1, 4;
    add.s64 %rd3, %rd1, %rd2;
    rem.u32 %r2, %r1, 3;
    mov.u32 %r3, 7;
$table: .branchtargets $zero, $one, $two;
    brx.idx %r2, $table;
$zero:
    mov.u32 %r3, 10;
    bra.uni $end;
$one:
    mov.u32 %r3, 11;
$two: // falls through
    add.u32 %r3, %r3, 1;
$end:
    st.global.u32 [%rd3], %r3;
    ret;
}
";

#[test]
fn tables_of_branches_are_followed() {
    let mut gpu = Gpu::load(TABLE).unwrap();
    let out = gpu.empty(128);
    gpu.run("k", [1, 1, 1], [32, 1, 1], 0, &pointers(&[out])).unwrap();
    assert_eq!(get::<u32>(&gpu, out), (0..32).map(|i| [10, 12, 8][i % 3]).collect::<Vec<_>>());
}
