//! Kernels of `../kernels`, compiled and given numbers.
#![allow(dead_code)] // Every test file has its own copy and uses a part.

use ptxsim::{Gpu, Options};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// A source is compiled once for all tests of a file.
static COMPILED: Mutex<BTreeMap<String, String>> = Mutex::new(BTreeMap::new());

/// The kernels of a source; `None`, and a line that says so, where there is no compiler.
pub fn gpu(test: &str, source: &str) -> Option<Gpu> {
    gpus(test, source, &[Options::default()]).pop()
}

/// The same once for each of these ways of running.
pub fn gpus(test: &str, source: &str, options: &[Options]) -> Vec<Gpu> {
    if ptxsim::toolkit().is_none() {
        eprintln!("SKIPPED {test}: no CUDA compiler");
        return Vec::new();
    }
    let mut compiled = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
    let ptx = compiled.entry(source.to_owned()).or_insert_with(|| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels").join(source);
        ptxsim::compile(&path, "compute_80", &[]).unwrap_or_else(|error| panic!("{source}: {error}"))
    });
    let load = |options: &Options| Gpu::with_options(ptx, *options).unwrap_or_else(|error| panic!("{source}: {error}"));
    options.iter().map(load).collect()
}

/// A number as memory holds it.
pub trait Number: Copy {
    fn bytes(self) -> Vec<u8>;
    fn of(bytes: &[u8]) -> Self;
}

macro_rules! numbers {
    ($($type:ty),*) => {$(
        impl Number for $type {
            fn bytes(self) -> Vec<u8> {
                self.to_le_bytes().to_vec()
            }
            fn of(bytes: &[u8]) -> Self {
                Self::from_le_bytes(bytes.try_into().unwrap())
            }
        }
    )*};
}
numbers!(u8, i8, u16, i16, u32, i32, u64, i64, f32, f64);

pub fn put<T: Number>(gpu: &mut Gpu, values: &[T]) -> u64 {
    gpu.upload(&values.iter().flat_map(|value| value.bytes()).collect::<Vec<u8>>())
}

pub fn get<T: Number>(gpu: &Gpu, at: u64) -> Vec<T> {
    gpu.download(at).chunks_exact(size_of::<T>()).map(T::of).collect()
}

/// Addresses, one behind the other.
pub fn pointers(addresses: &[u64]) -> Vec<u8> {
    addresses.iter().flat_map(|address| address.to_le_bytes()).collect()
}

/// Numbers that repeat, edges of their ranges among them (xorshift).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        match self.0 >> 40 & 31 {
            0 => 0,
            1 => !0,
            2 => 1 << 63 | 1 << 31,
            3 => 0x7fff_ffff,
            4 => self.0 & 0xff,
            _ => self.0,
        }
    }
    pub fn u32s(&mut self, len: usize) -> Vec<u32> {
        (0..len).map(|_| self.next() as u32).collect()
    }
    /// Between -4 and 4.
    pub fn float(&mut self) -> f32 {
        (self.next() as u32 as i32) as f32 / (1u32 << 29) as f32
    }
    pub fn floats(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.float()).collect()
    }
}
