//! What the compiler makes of every CUDA kernel, ahead of time: no local memory anywhere, and the instructions that the
//! products stand and fall with.
//!
//! Every source is compiled for sm_80, 86, 89, 90a, 100 and 120, with PTX. Attention's seven head sizes cost most of it:
//! all of them are compiled for sm_80, 90a and 120, only 64 and 128 for the others. A report names kernel, architecture
//! and figure.

use dialoguellm_kernels::cuda::SOURCES;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

/// Ampere, Hopper and consumer Blackwell get every head size.
const ALL_HEADS: [&str; 3] = ["80", "90a", "120"];
const SOME_HEADS: [&str; 3] = ["86", "89", "100"];
const TWO_HEADS: &str = "-DHEAD_SIZES=KERNELS(64) KERNELS(128)";
/// Compilers at a time.
const THREADS: usize = 2;

/// The architectures whose machine code is read, and what each product's must hold: the bf16 product, the loads of its
/// operands from shared memory, the copies to it past the registers.
const READ: [&str; 2] = ["80", "90a"];
const WANTED: [&str; 3] = ["HMMA.16816.F32.BF16", "LDSM", "LDGSTS"];
const FORBIDDEN: [&str; 2] = ["LDL", "STL"];
/// Kernels of those sources that are no products of tiles in shared memory.
const NO_PRODUCTS: [&str; 2] = ["linear_gradient_sum", "attention_delta"];

/// What ptxas tells of a kernel.
#[derive(Debug, Default)]
struct Kernel {
    stack: u32,
    spills: u32,
}

/// One source compiled for some architectures.
struct Compiled {
    /// By kernel and architecture (`sm_80`).
    kernels: BTreeMap<(String, String), Kernel>,
    image: PathBuf,
}

fn run(command: &mut Command) -> Result<(String, String), String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    let [out, err] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text).into_owned());
    if output.status.success() { Ok((out, err)) } else { Err(format!("{command:?}: {err}")) }
}

fn compile(source: &Path, image: PathBuf, architectures: &[&str], define: Option<&str>) -> Result<Compiled, String> {
    let toolkit = ptxsim::toolkit().ok_or("no CUDA compiler")?;
    let mut nvcc = Command::new(toolkit.join("bin/nvcc"));
    nvcc.args(["-fatbin", "-std=c++17", "-Xptxas=-v", "-o"]).arg(&image).arg(source).args(define);
    nvcc.args(architectures.iter().map(|arch| format!("-gencode=arch=compute_{arch},code=sm_{arch}")));
    nvcc.arg("-gencode=arch=compute_80,code=compute_80");
    let (out, err) = run(&mut nvcc)?;
    Ok(Compiled { kernels: properties(&(out + &err)), image })
}

/// What `ptxas -v` says, by kernel and architecture.
fn properties(said: &str) -> BTreeMap<(String, String), Kernel> {
    let (mut kernels, mut at) = (BTreeMap::new(), None);
    for line in said.lines() {
        if let Some(entry) = line.split_once("Compiling entry function '") {
            let names: Vec<&str> = entry.1.split('\'').collect();
            at = Some((names[0].to_owned(), names[2].to_owned()));
        } else if let (Some(kernel), true) = (&at, line.contains("bytes stack frame")) {
            let numbers: Vec<u32> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
            // A function that a kernel calls has a line of its own: all of them count.
            let Kernel { stack, spills } = kernels.entry(kernel.clone()).or_default();
            *stack += numbers[0];
            *spills += numbers[1] + numbers[2];
        }
    }
    kernels
}

/// What is wrong with the resources of kernels, a sentence each.
fn local_memory(kernels: &BTreeMap<(String, String), Kernel>) -> Vec<String> {
    let figures = kernels.iter().flat_map(|((name, arch), kernel)| {
        let stack = (kernel.stack > 0).then(|| format!("{name} on {arch}: a stack frame of {} bytes", kernel.stack));
        let spills = (kernel.spills > 0).then(|| format!("{name} on {arch}: {} bytes of spills", kernel.spills));
        [stack, spills]
    });
    figures.flatten().collect()
}

/// The machine code of every kernel of an image.
fn machine_code(image: &Path, architecture: &str) -> Result<BTreeMap<String, String>, String> {
    let toolkit = ptxsim::toolkit().ok_or("no CUDA compiler")?;
    let arch = format!("sm_{architecture}");
    let (text, _) = run(Command::new(toolkit.join("bin/cuobjdump")).args(["-sass", "-arch", &arch]).arg(image))?;
    let functions = text.split("Function : ").skip(1);
    Ok(functions.filter_map(|text| text.split_once('\n')).map(|(name, code)| (name.into(), code.into())).collect())
}

/// What is wrong with the machine code of a source of products, a sentence each.
fn instructions(code: &BTreeMap<String, String>, architecture: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    for (name, code) in code {
        let count = |word: &str| code.lines().filter(|line| has(line, word)).count();
        for word in WANTED.iter().filter(|_| !NO_PRODUCTS.contains(&name.as_str())) {
            if count(word) == 0 {
                wrong.push(format!("{name} on sm_{architecture}: no {word}"));
            }
        }
        for word in FORBIDDEN.iter().filter(|word| count(word) > 0) {
            wrong.push(format!("{name} on sm_{architecture}: {} {word}", count(word)));
        }
    }
    wrong
}

/// Is the line's instruction `word`, or `word` with more behind a dot?
fn has(line: &str, word: &str) -> bool {
    let mut words = line.split([' ', '\t', ';']);
    words.any(|found| found.strip_prefix(word).is_some_and(|more| more.is_empty() || more.starts_with('.')))
}

/// One source on some architectures.
struct Job {
    source: &'static str,
    architectures: &'static [&'static str],
    define: Option<&'static str>,
}

fn jobs() -> Vec<Job> {
    let all = SOURCES.iter().map(|(source, _)| Job { source, architectures: &ALL_HEADS, define: None });
    let some = SOURCES.iter().map(|(source, _)| {
        let define = (*source == "attention/cuda.cu").then_some(TWO_HEADS);
        Job { source, architectures: &SOME_HEADS, define }
    });
    // The longest first.
    let (long, short) = all.chain(some).partition::<Vec<_>, _>(|job| job.source == "attention/cuda.cu");
    long.into_iter().chain(short).collect()
}

/// What is wrong with one source, and how many kernels were looked at.
fn lint(job: &Job, image: PathBuf) -> Result<(Vec<String>, usize), String> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(job.source);
    let compiled = compile(&source, image, job.architectures, job.define)?;
    let mut wrong = local_memory(&compiled.kernels);
    if ["attention/cuda.cu", "linear/cuda.cu"].contains(&job.source) {
        for architecture in READ.iter().filter(|read| job.architectures.contains(read)) {
            let code = machine_code(&compiled.image, architecture)?;
            assert!(code.len() > NO_PRODUCTS.len(), "{} has no machine code for sm_{architecture}", job.source);
            wrong.extend(instructions(&code, architecture));
        }
    }
    Ok((wrong, compiled.kernels.len()))
}

/// A folder that is there for the life of the process's tests.
fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

fn has_compiler(test: &str) -> bool {
    let there = ptxsim::toolkit().is_some();
    if !there {
        eprintln!("SKIPPED {test}: no CUDA compiler");
    }
    there
}

#[test]
fn no_kernel_has_local_memory_and_products_have_their_instructions() {
    if !has_compiler("no_kernel_has_local_memory_and_products_have_their_instructions") {
        return;
    }
    let folder = folder("cuda_lint");
    let (jobs, found) = (Mutex::new((0..).zip(jobs()).collect::<Vec<(usize, Job)>>().into_iter()), Mutex::default());
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                while let Some((number, job)) = { jobs.lock().unwrap().next() } {
                    let linted = lint(&job, folder.join(format!("{number}.fatbin")));
                    let found: &mut Vec<_> = &mut found.lock().unwrap();
                    found.push(linted.unwrap_or_else(|error| (vec![error], 0)));
                }
            });
        }
    });
    let found = found.into_inner().unwrap();
    let mut wrong: Vec<&String> = found.iter().flat_map(|(wrong, _)| wrong).collect();
    wrong.sort();
    assert!(wrong.is_empty(), "{wrong:#?}");
    let kernels: usize = found.iter().map(|(_, kernels)| kernels).sum();
    println!("{kernels} compiled kernels");
    assert!(kernels >= 6 * 2 * SOURCES.len(), "only {kernels} kernels were looked at");
}

/// Compiles a source of the test's own for sm_80.
fn faulty(name: &str, text: &str) -> Compiled {
    let folder = folder("cuda_lint_faulty");
    let source = folder.join(format!("{name}.cu"));
    std::fs::write(&source, text).unwrap();
    compile(&source, folder.join(format!("{name}.fatbin")), &["80"], None).unwrap()
}

#[test]
fn spills_are_reported_with_kernel_architecture_and_bytes() {
    if !has_compiler("spills_are_reported_with_kernel_architecture_and_bytes") {
        return;
    }
    let compiled = faulty(
        "spilling",
        "extern \"C\" __global__ void __launch_bounds__(1024) spilling(float* x) {
            float kept[128];
            #pragma unroll
            for (int i = 0; i < 128; i++) kept[i] = x[i * 1024 + threadIdx.x];
            __syncthreads();
            #pragma unroll
            for (int i = 0; i < 128; i++) x[(127 - i) * 1024 + threadIdx.x] = kept[i] * kept[(i + 1) % 128];
        }",
    );
    let wrong = local_memory(&compiled.kernels);
    assert!(
        wrong.iter().any(|line| line.starts_with("spilling on sm_80: ") && line.ends_with("of spills")),
        "{wrong:?}"
    );
    let code = machine_code(&compiled.image, "80").unwrap();
    let wrong = instructions(&code, "80");
    for word in ["no HMMA.16816.F32.BF16", "no LDSM", "no LDGSTS", "LDL", "STL"] {
        assert!(wrong.iter().any(|line| line.ends_with(word)), "{word} in {wrong:?}");
    }
}

#[test]
fn an_array_that_is_indexed_at_run_time_is_reported() {
    if !has_compiler("an_array_that_is_indexed_at_run_time_is_reported") {
        return;
    }
    let compiled = faulty(
        "indexed",
        "extern \"C\" __global__ void indexed(float* x, int at) {
            float kept[64];
            for (int i = 0; i < 64; i++) kept[i] = 0.0f;
            for (int i = 0; i < 64; i++) kept[i * at % 64] += x[i];
            for (int i = 0; i < 64; i++) x[threadIdx.x + i] = kept[i * i % at];
        }
        extern \"C\" __global__ void sound(float* x) { x[threadIdx.x] += 1.0f; }",
    );
    assert_eq!(local_memory(&compiled.kernels), ["indexed on sm_80: a stack frame of 256 bytes"]);
    assert_eq!(compiled.kernels.len(), 2);
}
