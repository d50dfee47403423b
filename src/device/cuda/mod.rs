//! An NVIDIA GPU: tensors in its memory, kernels of `kernels/<operation>/cuda.cu`, one stream on which all happens in order.
//!
//! `probe` says whether there is one, `driver` has the driver's functions, `module` and `nvrtc` the kernels, `memory` the
//! tensors' memory and the way there, `weight` what is frozen, `queue` the work that waits, `ops` the operations, `head`
//! those of the vocabulary, `product` who multiplies: own kernels or `blaslt`.
//! Operations only ask for work, so the first failure of a pass is kept and the rest of the pass does nothing, until
//! [`Device::status`] tells.
//!
//! [`Device::status`]: super::Device::status
#![allow(unsafe_code)] // the driver's functions; every use says why it is sound

mod blaslt;
mod cache;
mod driver;
mod head;
mod memory;
mod module;
mod nvrtc;
mod ops;
mod probe;
mod product;
mod queue;
mod toolkit;
mod weight;

pub use ops::{LoraValues, Moments, RopeTable, Sight};
pub use weight::Weight;

use super::Tensor;
use crate::{Code, Error, Result};
use blaslt::Library;
use dialoguellm_kernels::cuda::{Launch, Ptr};
use dialoguellm_kernels::{adamw, attention, bf16};
use driver::{About, Context};
use memory::{Block, Memory, PART, Staging};
use module::Modules;
use queue::{Queue, Work};
use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// A GPU that multiplies in bf16.
pub struct Gpu {
    about: About,
    driver: u32,
    queue: Queue,
    /// cuBLASLt, or why it is not used.
    library: Result<Arc<Library>, String>,
    modules: Modules,
    staging: Staging,
    memory: Arc<Memory>,
    context: Arc<Context>,
    /// Held for the length of a pass.
    turn: Mutex<()>,
    /// The first failure of this pass, or the one that lost the GPU.
    failure: Mutex<Option<Error>>,
    /// Whether there is one.
    failed: AtomicBool,
    /// How many there were.
    failures: AtomicU64,
    /// The adapter of the last pass.
    params: Mutex<Option<LastParams>>,
}

/// Parameters on the host, as long as they are as they were, and on the GPU.
type LastParams = (Weak<Vec<f32>>, Arc<LoraValues>);

/// A row-major matrix in the GPU's memory.
pub struct Array<T> {
    block: Block,
    rows: usize,
    cols: usize,
    values: PhantomData<T>,
}

/// A number that may be sent to the GPU as it lies in memory.
trait Number: Copy + Default + Send + Sync + 'static {}
impl Number for bf16 {}
impl Number for u8 {}
impl Number for f32 {}
impl Number for u32 {}
impl Number for u64 {}
impl Number for f64 {}
impl Number for adamw::cuda::State {}

impl<T> Array<T> {
    fn at(&self) -> Ptr {
        self.block.at()
    }
    /// The address of row `row`.
    fn row(&self, row: usize) -> Ptr {
        assert!(row <= self.rows, "row {row} of {}", self.rows);
        self.at().offset(row * self.cols * size_of::<T>())
    }
    fn len(&self) -> usize {
        self.rows * self.cols
    }
    fn size(&self) -> usize {
        self.len() * size_of::<T>()
    }
}

impl<T: Send + Sync> Tensor for Array<T> {
    fn rows(&self) -> usize {
        self.rows
    }
    fn cols(&self) -> usize {
        self.cols
    }
    fn bytes(&self) -> usize {
        self.size()
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn bytes_of<T: Number>(values: &[T]) -> &[u8] {
    // SAFETY: a `Number` has no padding, and any byte may be read as u8.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

fn bytes_of_mut<T: Number>(values: &mut [T]) -> &mut [u8] {
    // SAFETY: as `bytes_of`, and any bytes are a number.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), size_of_val(values)) }
}

impl Gpu {
    /// The machine's first GPU with all kernels loaded. The error is a sentence without an end: why there is none.
    pub fn open() -> Result<Self, String> {
        let driver = probe::probe()?;
        let say = |error: Error| format!("the GPU cannot be opened: {error}");
        let (context, about) = Context::open(0).map_err(say)?;
        if about.capability < 80 {
            let (name, has) = (&about.name, shown(about.capability));
            return Err(format!("the GPU {name} has compute capability {has}, 8.0 or newer is needed"));
        }
        let context = Arc::new(context);
        let modules = Modules::open(&context, &about, driver)?;
        let staging = Staging::new(&context).map_err(say)?;
        let library = Library::open().map(Arc::new);
        Ok(Self {
            about,
            driver,
            queue: Queue::new(&context, library.as_ref().ok()),
            library,
            modules,
            staging,
            memory: Memory::new(&context),
            context,
            turn: Mutex::default(),
            failure: Mutex::default(),
            failed: AtomicBool::new(false),
            failures: AtomicU64::new(0),
            params: Mutex::default(),
        })
    }

    /// Whether there are kernels for heads of this size; if not, why.
    pub fn takes_heads_of(dim: usize) -> Result<(), String> {
        let sizes = attention::cuda::HEAD_SIZES;
        if sizes.contains(&dim) {
            return Ok(());
        }
        let sizes = sizes.map(|size| size.to_string()).join(", ");
        Err(format!("the model's heads are of size {dim}, and a GPU has kernels for {sizes}"))
    }

    /// What it is, for people.
    pub fn about(&self) -> String {
        let About { name, capability } = &self.about;
        let products = match &self.library {
            Ok(library) => format!("cuBLASLt {}", library.version()),
            Err(reason) => format!("own products: {reason}"),
        };
        let (capability, driver) = (shown(*capability), probe::shown(self.driver));
        format!("{name}, compute capability {capability}, driver for CUDA {driver}, {products}")
    }

    /// Bytes of its memory that are free, and all there are. Errors: those of [`Device::status`].
    ///
    /// [`Device::status`]: super::Device::status
    pub fn free_and_total(&self) -> Result<[usize; 2]> {
        self.context.bind()?;
        self.context.memory()
    }

    /// Waits for the caller's turn, and forgets what failed before it.
    fn begin(&self) -> Result<MutexGuard<'_, ()>> {
        let turn = locked(&self.turn);
        let mut failure = locked(&self.failure);
        if let Some(lost) = failure.as_ref().filter(|error| error.code() == Code::DeviceLost) {
            return Err(lost.clone());
        }
        if failure.take().is_some() {
            *locked(&self.params) = None;
        }
        self.failed.store(false, Ordering::Relaxed);
        drop(failure);
        self.context.bind()?;
        self.staging.rewind(&self.queue).inspect_err(|error| self.fail(error.clone()))?;
        Ok(turn)
    }

    /// The failure, if there is one; a lost GPU stays lost.
    fn told(&self) -> Result<()> {
        self.attempt(|| self.queue.flush());
        if !self.has_failed() {
            return Ok(());
        }
        // what fills them may be among the work that was cleared
        *locked(&self.params) = None;
        let mut failure = locked(&self.failure);
        let told = failure.clone();
        if failure.as_ref().is_some_and(|error| error.code() != Code::DeviceLost) {
            *failure = None;
            self.failed.store(false, Ordering::Relaxed);
        }
        told.map_or(Ok(()), Err)
    }

    fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    /// Does something unless the pass has failed; a failure is the pass's.
    fn attempt<T>(&self, work: impl FnOnce() -> Result<T>) -> Option<T> {
        if self.has_failed() {
            return None;
        }
        work().map_err(|error| self.fail(error)).ok()
    }

    fn fail(&self, error: Error) {
        locked(&self.failure).get_or_insert(error);
        self.failed.store(true, Ordering::Relaxed);
        self.failures.fetch_add(1, Ordering::Relaxed);
        self.queue.clear();
    }

    /// Memory as `take` takes it, with what waits in the pool returned to the driver where there is not enough.
    fn memory(&self, take: impl Fn(&Arc<Memory>) -> Result<Block>) -> Result<Block> {
        take(&self.memory).or_else(|error| {
            if error.code() != Code::OutOfMemory {
                return Err(error);
            }
            self.queue.flush()?;
            if self.memory.release() { take(&self.memory) } else { Err(error) }
        })
    }

    /// A tensor of unspecified values; without memory where it has none or the pass has failed.
    fn array<T: Number>(&self, rows: usize, cols: usize) -> Array<T> {
        let bytes = rows * cols * size_of::<T>();
        let block = if bytes == 0 { None } else { self.attempt(|| self.memory(|memory| memory.take(bytes))) };
        Array { block: block.unwrap_or_else(Block::nothing), rows, cols, values: PhantomData }
    }

    /// A tensor of the host's values, `[rows, cols]`.
    fn upload<T: Number>(&self, values: &[T], cols: usize) -> Array<T> {
        let array = self.array::<T>(values.len() / cols.max(1), cols);
        self.attempt(|| {
            bytes_of(values).chunks(PART).enumerate().try_for_each(|(i, chunk)| {
                let fill = |room: &mut [u8]| room.copy_from_slice(chunk);
                self.staging.put(&self.queue, &array.block, i * PART, chunk.len(), fill)
            })
        });
        array
    }

    /// The first values of a tensor, once all work is done; zeros where the pass has failed.
    fn download<T: Number>(&self, from: &Array<T>, len: usize) -> Vec<T> {
        let mut values = vec![T::default(); len.min(from.len())];
        self.attempt(|| {
            self.queue.flush()?;
            // SAFETY: the tensor has at least as many values, and memory unless the pass has failed.
            unsafe { self.context.download(bytes_of_mut(&mut values), from.at()) }
        });
        values
    }

    /// Copies `bytes` to `offset` of `to`.
    fn copy_to<T>(&self, to: &mut Array<T>, offset: usize, from: &Array<T>, bytes: usize) {
        assert!(offset + bytes <= to.size() && bytes <= from.size());
        if bytes == 0 {
            return;
        }
        // SAFETY: checked above; `to` is borrowed exclusively, so the ranges are apart.
        unsafe { self.ask(Work::Copy { to: to.at().offset(offset), from: from.at(), bytes }) };
    }

    fn zero<T>(&self, array: &mut Array<T>) {
        // SAFETY: the tensor has memory of that size unless the pass has failed.
        unsafe { self.ask(Work::Zero { at: array.at(), bytes: array.size() }) };
    }

    /// Runs a kernel unless there is nothing to do or the pass has failed.
    fn run(&self, launch: &Launch) {
        if launch.grid.contains(&0) {
            return;
        }
        if let Some(function) = self.attempt(|| self.modules.function(launch)) {
            // SAFETY: `ops` and `head` hand the launch tensors whose shapes they checked.
            unsafe { self.ask(Work::Launch(function, launch.clone())) };
        }
    }

    /// Puts work behind what waits, unless the pass has failed.
    ///
    /// # Safety
    /// As [`Queue::push`]; memory given back in between is given out again behind the work in the stream.
    unsafe fn ask(&self, work: Work) {
        if !self.has_failed() {
            // SAFETY: the caller's promise.
            unsafe { self.queue.push(work) };
        }
    }
}

/// 8.0 of 80.
fn shown(capability: u32) -> String {
    format!("{}.{}", capability / 10, capability % 10)
}
