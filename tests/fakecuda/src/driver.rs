//! The driver's state and what its calls do; `exports.rs` is their C form.
//!
//! Work is done when it is asked for: streams order nothing further and a wait finds everything done.

use crate::blaslt::Multiply;
use crate::codes::{Answer, Code};
use crate::failures::{Class, Failures};
use ptxsim::{Launch, Memory, Module};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::thread::ThreadId;
use std::time::Instant;

/// Bytes of dynamic shared memory that a kernel gets without asking.
const SHARED_WITHOUT_ASKING: u32 = 48 << 10;
/// And after asking: compute capability 8.0.
pub const SHARED_MAX: u32 = 163 << 10;
const THREADS_MAX: u64 = 1024;
/// An address's low digits are zero, as cudaMalloc's are: sizes are counted in these.
const GRANULE: usize = 512;

/// A kernel of a module.
#[derive(Clone)]
pub struct Function {
    module: Arc<Module>,
    name: String,
    shared_max: u32,
}

/// Whatever a handle may name.
enum Object {
    Module(Arc<Module>),
    Function(Function),
    Stream,
    Event(Option<Instant>),
    Graph(Vec<Task>),
    Executable(Vec<Task>),
    Pool,
}

/// One piece of a stream's work: done at once, or kept in a graph.
#[derive(Clone)]
pub enum Task {
    /// Host to device.
    Upload {
        /// Device address.
        to: u64,
        /// Host address.
        from: usize,
        /// Bytes.
        len: usize,
    },
    /// Device to host.
    Download {
        /// Host address.
        to: usize,
        /// Device address.
        from: u64,
        /// Bytes.
        len: usize,
    },
    /// Within the device.
    Copy {
        /// Device address.
        to: u64,
        /// Device address.
        from: u64,
        /// Bytes.
        len: usize,
    },
    /// The same bytes `count` times.
    Fill {
        /// Device address.
        to: u64,
        /// One, two or four bytes.
        pattern: Vec<u8>,
        /// Repetitions.
        count: usize,
    },
    /// A kernel.
    Launch {
        /// Which.
        function: Function,
        /// Blocks.
        grid: [u32; 3],
        /// Threads.
        block: [u32; 3],
        /// Dynamic shared memory, bytes.
        shared: u32,
        /// The parameter buffer.
        params: Vec<u8>,
    },
    /// A product of cuBLASLt.
    Multiply(Multiply),
    /// A function of the host.
    Host {
        /// The function.
        function: extern "C" fn(*mut std::ffi::c_void),
        /// Its argument.
        data: usize,
    },
}

/// Which calls a stream's recording forbids while it lasts, as `CUstreamCaptureMode` numbers them.
#[derive(Clone, Copy)]
enum Mode {
    /// What allocates or waits, on every thread.
    Global,
    /// The same on the thread that began it.
    ThreadLocal,
    /// Nothing of another stream.
    Relaxed,
}

/// A stream that records instead of running.
struct Capture {
    origin: u64,
    mode: Mode,
    thread: ThreadId,
    streams: BTreeSet<u64>,
    events: BTreeSet<u64>,
    tasks: Vec<Task>,
    spoiled: bool,
}

/// All that the library knows.
pub struct Driver {
    memory: Memory,
    sizes: BTreeMap<u64, usize>,
    budget: usize,
    used: usize,
    objects: BTreeMap<u64, Object>,
    next: u64,
    captures: Vec<Capture>,
    lost: Option<Code>,
    failures: Failures,
}

impl Driver {
    /// As the environment says.
    pub fn from_env() -> Self {
        let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
        let failures = std::env::var("FAKECUDA_FAIL").unwrap_or_default();
        let check = std::env::var("FAKECUDA_CHECK").is_ok_and(|value| value != "0");
        Self {
            memory: Memory::new(check),
            sizes: BTreeMap::new(),
            budget: number("FAKECUDA_MEMORY").unwrap_or(4 << 30),
            used: 0,
            objects: BTreeMap::new(),
            next: 0x1000,
            captures: Vec::new(),
            lost: None,
            failures: Failures::parse(&failures).unwrap_or_else(|error| {
                eprintln!("fakecuda: {error}");
                Failures::default()
            }),
        }
    }

    /// The error that every call answers since the device was lost.
    pub fn lost(&self) -> Answer {
        self.lost.map_or(Ok(()), Err)
    }

    /// Other failures of a class from now on: [`Failures::instead`].
    pub fn fail(&mut self, class: Class, at: u64, code: Code) -> u64 {
        self.failures.instead(class, at, code)
    }

    /// The device is lost after an error of a kernel or of an address, as on a real one.
    fn remember(&mut self, answer: Answer) -> Answer {
        if let Err(code @ (Code::LAUNCH_FAILED | Code::ILLEGAL_ADDRESS)) = answer {
            self.lost = Some(code);
        }
        answer
    }

    fn plan(&mut self, class: Class) -> Answer {
        let answer = self.failures.next(class).map_or(Ok(()), Err);
        self.remember(answer)
    }

    // ---- handles ----

    fn insert(&mut self, object: Object) -> u64 {
        self.next += 0x10;
        self.objects.insert(self.next, object);
        self.next
    }
    fn object(&mut self, handle: u64) -> Answer<&mut Object> {
        self.objects.get_mut(&handle).ok_or(Code::INVALID_HANDLE)
    }
    fn remove(&mut self, handle: u64, is: impl Fn(&Object) -> bool) -> Answer {
        if !is(self.object(handle)?) {
            return Err(Code::INVALID_HANDLE);
        }
        self.objects.remove(&handle);
        Ok(())
    }
    /// 0, 1 and 2 are the default streams.
    fn stream(&mut self, handle: u64) -> Answer {
        match handle {
            0..=2 => Ok(()),
            _ if matches!(self.object(handle)?, Object::Stream) => Ok(()),
            _ => Err(Code::INVALID_HANDLE),
        }
    }

    // ---- memory ----

    /// Bytes free and in all.
    pub fn info(&self) -> (usize, usize) {
        (self.budget - self.used, self.budget)
    }

    /// A buffer's address.
    pub fn alloc(&mut self, len: usize) -> Answer<u64> {
        self.plan(Class::Alloc)?;
        if len == 0 {
            return Err(Code::INVALID_VALUE);
        }
        let size = len.checked_next_multiple_of(GRANULE).ok_or(Code::OUT_OF_MEMORY)?;
        if size > self.budget - self.used {
            return Err(Code::OUT_OF_MEMORY);
        }
        let at = self.memory.alloc(len);
        self.sizes.insert(at, size);
        self.used += size;
        Ok(at)
    }

    /// Frees a buffer; address 0 is nothing to free.
    pub fn free(&mut self, at: u64) -> Answer {
        if at == 0 {
            return Ok(());
        }
        let size = self.sizes.remove(&at).ok_or(Code::INVALID_VALUE)?;
        self.used -= size;
        self.memory.free(at);
        Ok(())
    }

    /// Start and length of the buffer that an address lies in.
    pub fn range(&self, at: u64) -> Answer<(u64, usize)> {
        let (&base, &size) = self.sizes.range(..=at).next_back().ok_or(Code::INVALID_VALUE)?;
        if at - base < size as u64 { Ok((base, size)) } else { Err(Code::INVALID_VALUE) }
    }

    // ---- modules ----

    /// A module of PTX text; anything else is an image for another device.
    pub fn load(&mut self, image: &[u8]) -> Answer<(u64, Option<String>)> {
        let ptx = std::str::from_utf8(image).map_err(|_| Code::INVALID_IMAGE)?;
        match Module::load(ptx, &mut self.memory) {
            Ok(module) => Ok((self.insert(Object::Module(Arc::new(module))), None)),
            Err(error) => Ok((0, Some(error))),
        }
    }
    /// A module that is no longer wanted; its functions keep what they need.
    pub fn unload(&mut self, module: u64) -> Answer {
        self.remove(module, |object| matches!(object, Object::Module(_)))
    }
    fn module(&mut self, handle: u64) -> Answer<Arc<Module>> {
        let Object::Module(module) = self.object(handle)? else { return Err(Code::INVALID_HANDLE) };
        Ok(module.clone())
    }
    /// A kernel by its name.
    pub fn function(&mut self, module: u64, name: &str) -> Answer<u64> {
        let module = self.module(module)?;
        module.kernel(name).ok_or(Code::NOT_FOUND)?;
        let function = Function { module, name: name.to_owned(), shared_max: SHARED_WITHOUT_ASKING };
        Ok(self.insert(Object::Function(function)))
    }
    /// Address and size of a variable.
    pub fn global(&mut self, module: u64, name: &str) -> Answer<(u64, usize)> {
        self.module(module)?.global(name).ok_or(Code::NOT_FOUND)
    }
    /// A function for a look at its parameters.
    pub fn get(&mut self, function: u64) -> Answer<Function> {
        let Object::Function(function) = self.object(function)? else { return Err(Code::INVALID_HANDLE) };
        Ok(function.clone())
    }
    /// Raises a function's limit of dynamic shared memory.
    pub fn allow_shared(&mut self, function: u64, bytes: i32) -> Answer {
        let Object::Function(function) = self.object(function)? else { return Err(Code::INVALID_HANDLE) };
        let bytes = u32::try_from(bytes).map_err(|_| Code::INVALID_VALUE)?;
        if bytes > SHARED_MAX {
            return Err(Code::INVALID_VALUE);
        }
        function.shared_max = bytes;
        Ok(())
    }

    // ---- streams and events ----

    /// A new stream.
    pub fn new_stream(&mut self) -> u64 {
        self.insert(Object::Stream)
    }
    /// The end of a stream.
    pub fn destroy_stream(&mut self, stream: u64) -> Answer {
        self.remove(stream, |object| matches!(object, Object::Stream))
    }
    /// A new event.
    pub fn new_event(&mut self) -> u64 {
        self.insert(Object::Event(None))
    }
    /// The end of an event.
    pub fn destroy_event(&mut self, event: u64) -> Answer {
        self.remove(event, |object| matches!(object, Object::Event(_)))
    }
    fn event(&mut self, event: u64) -> Answer<&mut Option<Instant>> {
        let Object::Event(time) = self.object(event)? else { return Err(Code::INVALID_HANDLE) };
        Ok(time)
    }
    /// Marks this moment of a stream.
    pub fn record(&mut self, event: u64, stream: u64) -> Answer {
        self.stream(stream)?;
        self.event(event)?;
        match self.capture_of(stream) {
            Some(capture) => {
                capture.events.insert(event);
            }
            None => *self.event(event)? = Some(Instant::now()),
        }
        Ok(())
    }
    /// A stream that waits for an event of a capture joins it.
    pub fn wait_event(&mut self, stream: u64, event: u64) -> Answer {
        self.stream(stream)?;
        self.event(event)?;
        if let Some(capture) = self.captures.iter_mut().find(|capture| capture.events.contains(&event)) {
            capture.streams.insert(stream);
        }
        Ok(())
    }
    /// Milliseconds between two recorded events.
    pub fn elapsed(&mut self, start: u64, end: u64) -> Answer<f32> {
        let start = self.event(start)?.ok_or(Code::INVALID_HANDLE)?;
        let end = self.event(end)?.ok_or(Code::INVALID_HANDLE)?;
        let forth = end.saturating_duration_since(start).as_secs_f64();
        Ok(((forth - start.saturating_duration_since(end).as_secs_f64()) * 1e3) as f32)
    }
    /// A wait for an event; one of a capture cannot be waited for.
    pub fn await_event(&mut self, event: u64) -> Answer {
        self.event(event)?;
        if self.captures.iter().any(|capture| capture.events.contains(&event)) {
            return Err(Code::CAPTURED_EVENT);
        }
        self.plan(Class::Sync)
    }
    /// A wait for a stream: everything is done, unless a failure is planned; its own capture is spoiled.
    pub fn await_stream(&mut self, stream: u64) -> Answer {
        self.stream(stream)?;
        self.spoil(|capture| capture.streams.contains(&stream))?;
        self.plan(Class::Sync)
    }
    /// A wait for the device, which waits for every stream.
    pub fn synchronize(&mut self) -> Answer {
        self.spoil(|_| true)?;
        self.plan(Class::Sync)
    }
    /// A call that allocates or may wait: the captures whose mode forbids it are spoiled.
    pub fn unless_captured(&mut self) -> Answer {
        let here = std::thread::current().id();
        self.spoil(|capture| match capture.mode {
            Mode::Global => true,
            Mode::ThreadLocal => capture.thread == here,
            Mode::Relaxed => false,
        })
    }
    fn spoil(&mut self, forbids: impl Fn(&Capture) -> bool) -> Answer {
        let mut answer = Ok(());
        for capture in self.captures.iter_mut().filter(|capture| forbids(capture)) {
            capture.spoiled = true;
            answer = Err(Code::CAPTURE_UNSUPPORTED);
        }
        answer
    }
    fn capture_of(&mut self, stream: u64) -> Option<&mut Capture> {
        self.captures.iter_mut().find(|capture| capture.streams.contains(&stream))
    }

    // ---- work ----

    /// Work of a stream: recorded if the stream is captured, done otherwise.
    pub fn submit(&mut self, stream: u64, task: Task) -> Answer {
        self.stream(stream)?;
        if let Task::Launch { function, grid, block, shared, .. } = &task {
            fits(function, *grid, *block, *shared)?;
        }
        if stream == 0 {
            self.spoil(|_| true).map_err(|_| Code::CAPTURE_IMPLICIT)?;
        }
        match self.capture_of(stream) {
            Some(capture) => {
                capture.tasks.push(task);
                Ok(())
            }
            None => self.perform(&task),
        }
    }

    /// Work of the legacy stream, that its caller waits for.
    pub fn submit_and_wait(&mut self, task: Task) -> Answer {
        self.spoil(|_| true)?;
        self.perform(&task)
    }

    fn perform(&mut self, task: &Task) -> Answer {
        match task {
            Task::Launch { .. } => self.plan(Class::Launch)?,
            Task::Multiply(_) => self.plan(Class::Product)?,
            Task::Upload { .. } | Task::Download { .. } | Task::Copy { .. } => self.plan(Class::Copy)?,
            Task::Fill { .. } | Task::Host { .. } => {}
        }
        let answer = self.effect(task);
        self.remember(answer)
    }

    fn effect(&mut self, task: &Task) -> Answer {
        let wild = |_| Code::INVALID_VALUE;
        match task {
            Task::Upload { to, from, len } => {
                // SAFETY: the caller of the driver vouches for its own memory, as with a real driver.
                let bytes = unsafe { slice(*from, *len) };
                self.memory.write(*to, bytes).map_err(wild)
            }
            Task::Download { to, from, len } => {
                let bytes = self.memory.read(*from, *len).map_err(wild)?;
                // SAFETY: as above; device and host memory never overlap.
                unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), *to as *mut u8, *len) };
                Ok(())
            }
            Task::Copy { to, from, len } => {
                let bytes = self.memory.read(*from, *len).map_err(wild)?.to_vec();
                self.memory.write(*to, &bytes).map_err(wild)
            }
            Task::Fill { to, pattern, count } => self.memory.write(*to, &pattern.repeat(*count)).map_err(wild),
            Task::Multiply(product) => product.effect(&mut self.memory),
            Task::Host { function, data } => {
                function(*data as *mut _);
                Ok(())
            }
            Task::Launch { function, grid, block, shared, params } => {
                let kernel = function.module.kernel(&function.name).ok_or(Code::INVALID_HANDLE)?;
                let launch = Launch { grid: *grid, block: *block, shared: *shared, params };
                ptxsim::launch(kernel, &mut self.memory, &launch, 0).map(|_| ()).map_err(|report| {
                    eprintln!("fakecuda: {}: {report}", function.name);
                    Code::LAUNCH_FAILED
                })
            }
        }
    }

    // ---- graphs ----

    /// From here a stream records.
    pub fn begin_capture(&mut self, stream: u64, mode: u32) -> Answer {
        self.plan(Class::Graph)?;
        self.stream(stream)?;
        let modes = [Mode::Global, Mode::ThreadLocal, Mode::Relaxed];
        let mode = *modes.get(mode as usize).ok_or(Code::INVALID_VALUE)?;
        if self.capture_of(stream).is_some() || stream == 0 {
            return Err(Code::CAPTURE_UNSUPPORTED);
        }
        let (streams, events, thread) = (BTreeSet::from([stream]), BTreeSet::new(), std::thread::current().id());
        let capture = Capture { origin: stream, mode, thread, streams, events, tasks: Vec::new(), spoiled: false };
        self.captures.push(capture);
        Ok(())
    }
    /// 0: not captured, 1: captured, 2: the capture is spoiled.
    pub fn capture_status(&mut self, stream: u64) -> Answer<u32> {
        self.stream(stream)?;
        Ok(self.capture_of(stream).map_or(0, |capture| 1 + u32::from(capture.spoiled)))
    }
    /// The graph of what was recorded.
    pub fn end_capture(&mut self, stream: u64) -> Answer<u64> {
        let at = self.captures.iter().position(|capture| capture.origin == stream).ok_or(Code::CAPTURE_UNMATCHED)?;
        let capture = self.captures.remove(at);
        self.plan(Class::Graph)?;
        if capture.spoiled {
            return Err(Code::CAPTURE_INVALIDATED);
        }
        Ok(self.insert(Object::Graph(capture.tasks)))
    }
    fn tasks(&mut self, graph: u64) -> Answer<Vec<Task>> {
        let Object::Graph(tasks) = self.object(graph)? else { return Err(Code::INVALID_HANDLE) };
        Ok(tasks.clone())
    }
    /// How many pieces of work a graph has.
    pub fn graph_len(&mut self, graph: u64) -> Answer<usize> {
        Ok(self.tasks(graph)?.len())
    }
    /// A graph that can be run.
    pub fn instantiate(&mut self, graph: u64) -> Answer<u64> {
        self.plan(Class::Graph)?;
        let tasks = self.tasks(graph)?;
        Ok(self.insert(Object::Executable(tasks)))
    }
    /// New arguments for an executable of the same form.
    pub fn update(&mut self, executable: u64, graph: u64) -> Answer {
        let new = self.tasks(graph)?;
        let Object::Executable(old) = self.object(executable)? else { return Err(Code::INVALID_HANDLE) };
        let same = |(a, b): (&Task, &Task)| std::mem::discriminant(a) == std::mem::discriminant(b);
        if old.len() != new.len() || !old.iter().zip(&new).all(same) {
            return Err(Code::GRAPH_EXEC_UPDATE_FAILURE);
        }
        *old = new;
        Ok(())
    }
    /// Runs a graph, or records its work in another.
    pub fn replay(&mut self, executable: u64, stream: u64) -> Answer {
        self.plan(Class::Graph)?;
        let Object::Executable(tasks) = self.object(executable)? else { return Err(Code::INVALID_HANDLE) };
        tasks.clone().into_iter().try_for_each(|task| self.submit(stream, task))
    }
    /// The end of a graph.
    pub fn destroy_graph(&mut self, graph: u64) -> Answer {
        self.remove(graph, |object| matches!(object, Object::Graph(_)))
    }
    /// The end of an executable.
    pub fn destroy_executable(&mut self, executable: u64) -> Answer {
        self.remove(executable, |object| matches!(object, Object::Executable(_)))
    }

    // ---- pools: one memory, whatever pool it is taken from ----

    /// A new pool.
    pub fn new_pool(&mut self) -> u64 {
        self.insert(Object::Pool)
    }
    /// The end of a pool.
    pub fn destroy_pool(&mut self, pool: u64) -> Answer {
        self.remove(pool, |object| matches!(object, Object::Pool))
    }
    /// Bytes in use.
    pub fn used(&self) -> usize {
        self.used
    }
}

impl Function {
    /// (offset, size) of every parameter in the buffer.
    pub fn params(&self) -> Vec<(usize, usize)> {
        self.module.kernel(&self.name).map_or(Vec::new(), |kernel| kernel.params().to_vec())
    }
    /// The limit of dynamic shared memory.
    pub fn shared_max(&self) -> u32 {
        self.shared_max
    }
}

fn fits(function: &Function, grid: [u32; 3], block: [u32; 3], shared: u32) -> Answer {
    let threads: u64 = block.iter().map(|&n| u64::from(n)).product();
    let blocks = grid[0] <= i32::MAX as u32 && grid[1] < 1 << 16 && grid[2] < 1 << 16 && !grid.contains(&0);
    let fits = blocks && (1..=THREADS_MAX).contains(&threads) && block[2] <= 64 && shared <= function.shared_max;
    if fits { Ok(()) } else { Err(Code::INVALID_VALUE) }
}

/// # Safety
/// `len` bytes at `from` are readable, unless `len` is 0.
unsafe fn slice<'a>(from: usize, len: usize) -> &'a [u8] {
    if len == 0 {
        return &[];
    }
    // SAFETY: as the caller promises.
    unsafe { std::slice::from_raw_parts(from as *const u8, len) }
}
