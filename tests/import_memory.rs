//! Importing a GGUF holds a small part of the model at a time: the heap's peak is that of the largest tensor, not of the
//! file. Alone in its binary, because it counts every allocation of the process.

use dialoguellm::files::gguf::import;
use dialoguellm_kernels::matrix::Dtype;
use std::alloc::{GlobalAlloc, Layout, System};
use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The system's allocator, with the bytes held now and the most ever held.
struct Counting;
static HELD: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);
#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: every call is passed on as it is; only numbers are kept beside.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let held = HELD.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(held, Ordering::Relaxed);
        // SAFETY: the caller's.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's.
        unsafe { System.dealloc(at, layout) }
    }
}

const LAYERS: usize = 24;
const D: usize = 256;
const F: usize = 704;
const V: usize = 300;

fn text(s: &str) -> Vec<u8> {
    [&(s.len() as u64).to_le_bytes(), s.as_bytes()].concat()
}

fn pair(key: &str, kind: u32, value: &[u8]) -> Vec<u8> {
    [&text(key)[..], &kind.to_le_bytes(), value].concat()
}

fn strings(all: impl ExactSizeIterator<Item = String>) -> Vec<u8> {
    let head = [&8u32.to_le_bytes()[..], &(all.len() as u64).to_le_bytes()].concat();
    all.fold(head, |bytes, s| [bytes, text(&s)].concat())
}

/// Keys and values of a LLaMA of these sizes with a byte-level vocabulary of no merges.
fn settings() -> Vec<Vec<u8>> {
    let number = |key: &str, n: usize| pair(key, 4, &(n as u32).to_le_bytes());
    let bytes = tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet();
    let mut tokens: Vec<String> = bytes.into_iter().map(String::from).collect();
    tokens.sort();
    tokens.extend((tokens.len()..V).map(|i| format!("<t{i}>")));
    let kinds = [&5u32.to_le_bytes()[..], &(V as u64).to_le_bytes(), &1i32.to_le_bytes().repeat(V)].concat();
    vec![
        pair("general.architecture", 8, &text("llama")),
        number("llama.block_count", LAYERS),
        number("llama.context_length", 64),
        number("llama.embedding_length", D),
        number("llama.feed_forward_length", F),
        number("llama.attention.head_count", 4),
        number("llama.attention.head_count_kv", 4),
        pair("llama.attention.layer_norm_rms_epsilon", 6, &1e-5f32.to_le_bytes()),
        pair("tokenizer.ggml.model", 8, &text("gpt2")),
        pair("tokenizer.ggml.pre", 8, &text("llama-bpe")),
        pair("tokenizer.ggml.tokens", 9, &strings(tokens.into_iter())),
        pair("tokenizer.ggml.token_type", 9, &kinds),
        pair("tokenizer.ggml.merges", 9, &strings(std::iter::empty())),
        number("tokenizer.ggml.bos_token_id", 257),
        number("tokenizer.ggml.eos_token_id", 257),
    ]
}

/// (name, outermost size or 0 for a vector, innermost size)
fn tensors() -> Vec<(String, usize, usize)> {
    let layer = |i: usize| {
        let square = ["attn_q", "attn_k", "attn_v", "attn_output"].map(|name| (name, D, D));
        let mlp = [("ffn_gate", F, D), ("ffn_up", F, D), ("ffn_down", D, F), ("attn_norm", 0, D), ("ffn_norm", 0, D)];
        square.into_iter().chain(mlp).map(move |(name, rows, cols)| (format!("blk.{i}.{name}.weight"), rows, cols))
    };
    let rest = [("token_embd.weight".to_owned(), V, D), ("output_norm.weight".to_owned(), 0, D)];
    (0..LAYERS).flat_map(layer).chain(rest).collect()
}

/// Writes the file in f32, a tensor at a time; returns its length.
fn write(path: &std::path::Path) -> u64 {
    let (pairs, tensors) = (settings(), tensors());
    let counts = [(tensors.len() as u64).to_le_bytes(), (pairs.len() as u64).to_le_bytes()].concat();
    let mut head = [&b"GGUF"[..], &3u32.to_le_bytes(), &counts, &pairs.concat()].concat();
    let mut at = 0u64;
    for (name, rows, cols) in &tensors {
        let sizes: Vec<u64> = [*cols as u64].into_iter().chain((*rows > 0).then_some(*rows as u64)).collect();
        head.extend(text(name));
        head.extend((sizes.len() as u32).to_le_bytes());
        sizes.iter().for_each(|size| head.extend(size.to_le_bytes()));
        head.extend(0u32.to_le_bytes()); // F32
        head.extend(at.to_le_bytes());
        at += 4 * sizes.iter().product::<u64>(); // a multiple of 32, the file's alignment
    }
    head.resize(head.len().next_multiple_of(32), 0);
    let mut file = std::io::BufWriter::new(std::fs::File::create(path).unwrap());
    file.write_all(&head).unwrap();
    (0..at / 4).for_each(|i| file.write_all(&(i as f32 * 1e-9).to_le_bytes()).unwrap());
    file.into_inner().unwrap().metadata().unwrap().len()
}

#[test]
fn the_heap_holds_no_more_than_a_few_tensors_while_a_file_is_imported() {
    let dir = tempfile::tempdir().unwrap();
    let (file, out) = (dir.path().join("f.gguf"), dir.path().join("m"));
    let bytes = write(&file);
    let before = HELD.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let report = import(&file, &out, Dtype::Bf16, &mut |_, _| true, &dialoguellm::Cancel::default()).unwrap();
    let peak = PEAK.load(Ordering::Relaxed) - before;
    let largest = 4 * F * D;
    println!(
        "{} tensors, {bytes} bytes in the file, {largest} in the largest tensor, {peak} on the heap",
        report.tensors
    );
    assert!(bytes as usize > 50 * largest);
    assert!(peak < 2 * largest, "{peak} bytes on the heap for tensors of at most {largest}");
}
