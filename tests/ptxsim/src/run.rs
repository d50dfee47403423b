//! A launch: blocks one after the other, a block's warps in turns, its barriers, and what the checker found.

use crate::kernel::{Kernel, Op, Reduction};
use crate::lanes::LANES;
use crate::memory::{Memory, NEVER_WRITTEN};
use crate::shadow::{Access, Hazard, History, SEGMENTS_MAX, Shadow, Space, Thread};
use crate::warp::{Stop, Warp};
use std::collections::HashSet;

/// Geometry and arguments of a launch.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Dynamic shared memory, bytes.
    pub shared: u32,
    /// The parameter buffer, in C's layout.
    pub params: &'a [u8],
}

/// Instructions that a warp runs before another has its turn.
const SLICE: u64 = 1 << 14;
/// After so many in one block a warp is taken to wait for what never comes.
const ENDLESS: u64 = 1 << 30;
/// Different findings that are told.
const REPORTS_MAX: usize = 8;

/// What ends a launch: an instruction, a lane, and what is wrong.
#[derive(Debug)]
pub struct Fault {
    at: usize,
    lane: usize,
    text: String,
}

impl Fault {
    /// At an instruction of the kernel.
    pub fn of(at: usize, lane: usize, text: &str) -> Self {
        Self { at, lane, text: text.to_owned() }
    }
}

/// What a warp sees of the block and of the device.
pub struct Block<'a> {
    pub kernel: &'a Kernel,
    pub size: [u32; 3],
    pub grid: [u32; 3],
    pub place: [u32; 3],
    memory: &'a mut Memory,
    shared: Vec<u8>,
    shared_shadow: Shadow,
    history: Option<History>,
    params: Vec<u8>,
    told: HashSet<(usize, std::mem::Discriminant<Hazard>)>,
    reports: Vec<String>,
}

/// Runs a kernel: the number of warp instructions, or what is wrong, one finding a line.
///
/// Blocks and warps run in an order that `seed` shuffles; 0 is their own.
pub fn launch(kernel: &Kernel, memory: &mut Memory, launch: &Launch, seed: u64) -> Result<u64, String> {
    let len = kernel.params.last().map_or(0, |(at, size)| at + size);
    let threads = launch.block.iter().map(|&size| u64::from(size)).product::<u64>();
    let limit = u64::from(kernel.max_threads.unwrap_or(1024));
    let problem = if launch.params.len() < len {
        format!("{} bytes of parameters, {len} are wanted", launch.params.len())
    } else if launch.grid.contains(&0) || threads == 0 || threads > limit {
        format!("grid {:?} and block {:?}; blocks have 1 to {limit} threads", launch.grid, launch.block)
    } else {
        String::new()
    };
    if !problem.is_empty() {
        return Err(format!("{}: {problem}", kernel.name));
    }
    if memory.segment > SEGMENTS_MAX / 2 {
        memory.settle();
        memory.segment = 1;
    }
    let bytes = kernel.shared + launch.shared as usize;
    let check = memory.checks();
    let warps = (threads as usize).div_ceil(LANES);
    let mut block = Block {
        kernel,
        size: launch.block,
        grid: launch.grid,
        place: [0; 3],
        history: check.then(|| History::new(memory.segment, warps)),
        memory,
        shared: vec![NEVER_WRITTEN; bytes],
        shared_shadow: Shadow::new(if check { bytes } else { 0 }),
        params: launch.params[..len].to_vec(),
        told: HashSet::new(),
        reports: Vec::new(),
    };
    let result = block.run_all(warps, seed);
    if let Some(history) = &block.history {
        block.memory.segment = history.next();
    }
    let count = result.map_err(|report| [&block.reports[..], &[report]].concat().join("\n"))?;
    if block.reports.is_empty() { Ok(count) } else { Err(block.reports.join("\n")) }
}

/// Numbers in an order of their own.
struct Order(u64);

impl Order {
    /// Up to 64 random bits (splitmix64).
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }
    fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, (self.next() % (i as u64 + 1)) as usize);
        }
    }
}

impl Block<'_> {
    /// Threads of a block.
    pub fn threads(&self) -> usize {
        self.size.iter().map(|&size| size as usize).product()
    }

    /// Number of the block.
    fn number(&self) -> u32 {
        (self.place[2] * self.grid[1] + self.place[1]) * self.grid[0] + self.place[0]
    }

    fn run_all(&mut self, warps: usize, seed: u64) -> Result<u64, String> {
        let mut order = (seed != 0).then_some(Order(seed));
        let blocks = u64::from(self.grid[0]) * u64::from(self.grid[1]) * u64::from(self.grid[2]);
        let mut blocks: Vec<u32> = (0..blocks as u32).collect();
        if let Some(order) = &mut order {
            order.shuffle(&mut blocks);
        }
        let mut warps: Vec<Warp> = (0..warps).map(|index| Warp::new(self, index)).collect();
        let mut count = 0;
        for block in blocks {
            let [x, y, _] = self.grid;
            self.place = [block % x, block / x % y, block / x / y];
            self.shared.fill(NEVER_WRITTEN);
            if let Some(history) = &mut self.history {
                if history.next() > SEGMENTS_MAX - (1 << 20) {
                    return Err(format!("{}: the launch is too long for the checker", self.kernel.name));
                }
                history.begin_block(block);
            }
            warps.iter_mut().for_each(|warp| warp.begin(self));
            self.run_block(&mut warps, order.as_mut())?;
            count += warps.iter().map(|warp| warp.run).sum::<u64>();
            if self.reports.len() >= REPORTS_MAX {
                break;
            }
        }
        Ok(count)
    }

    fn run_block(&mut self, warps: &mut [Warp], mut order: Option<&mut Order>) -> Result<(), String> {
        let mut stops = vec![Stop::Slice; warps.len()];
        let mut arrivals = Arrivals::default();
        let mut turns: Vec<usize> = (0..warps.len()).collect();
        loop {
            let mut ran = false;
            let mut slice = SLICE;
            if let Some(order) = &mut order {
                order.shuffle(&mut turns);
                slice = 1 + order.next() % SLICE;
            }
            for &index in &turns {
                if stops[index] != Stop::Slice {
                    continue;
                }
                ran = true;
                let warp = &mut warps[index];
                stops[index] = warp.run(self, slice).map_err(|fault| self.tell(index, &fault))?;
                if warp.run > ENDLESS {
                    return Err(format!("{}, warp {index}: it runs without an end", self.name()));
                }
                if let Stop::Barrier(at) = stops[index] {
                    self.arrive(warps, &mut stops, &mut arrivals, index, at)?;
                }
            }
            if stops.iter().all(|&stop| stop == Stop::Done) {
                return Ok(());
            }
            if !ran {
                return Err(self.stuck(&stops));
            }
        }
    }

    /// A warp is at a barrier; who waits there goes on if it was the last one.
    fn arrive(
        &mut self,
        warps: &mut [Warp],
        stops: &mut [Stop],
        arrivals: &mut Arrivals,
        index: usize,
        at: usize,
    ) -> Result<(), String> {
        let Op::Barrier(barrier) = &self.kernel.instructions[at].op else { unreachable!("warps stop at barriers") };
        let warp = &mut warps[index];
        if !warp.is_whole(at) {
            let [here, ended, elsewhere] = warp.census(at);
            let text = format!("a barrier with {here} of the warp's threads ({elsewhere} elsewhere, {ended} ended)");
            return Err(self.tell(index, &Fault::of(at, 0, &text)));
        }
        let id = warp.uniform(barrier.id) as usize % 16;
        let all = self.threads() as u32;
        let wanted = barrier.threads.map_or(all, |threads| warp.uniform(threads) as u32);
        let place = &mut arrivals.places[id];
        // A barrier counts warps: a last one of fewer threads counts as a whole one.
        place.count += if barrier.threads.is_some() { LANES as u32 } else { warp.threads() };
        if let Some((_, predicate)) = barrier.reduction {
            let holds = warp.holds(predicate).count_ones();
            place.holds += holds;
        }
        if barrier.waits {
            place.waiting.push((index, at));
        } else {
            place.arrived.extend(self.history.as_mut().map(|history| history.arrive(index)));
            warp.pass(at);
            stops[index] = Stop::Slice;
        }
        if place.count < wanted {
            return Ok(());
        }
        let place = std::mem::take(place);
        if place.count > wanted {
            let text = format!("a barrier of {wanted} threads that {} reach", place.count);
            return Err(self.tell(index, &Fault::of(at, 0, &text)));
        }
        let waiting: Vec<usize> = place.waiting.iter().map(|&(warp, _)| warp).collect();
        if let Some(history) = &mut self.history {
            history.barrier(&waiting, &place.arrived);
        }
        for (index, at) in place.waiting {
            let Op::Barrier(barrier) = &self.kernel.instructions[at].op else { unreachable!("warps wait at barriers") };
            match barrier.reduction {
                Some((Reduction::Count(to), _)) => warps[index].set(to, place.holds.into()),
                Some((Reduction::All(to), _)) => warps[index].set_predicate(to, place.holds == wanted),
                Some((Reduction::Any(to), _)) => warps[index].set_predicate(to, place.holds > 0),
                None => {}
            }
            warps[index].pass(at);
            stops[index] = Stop::Slice;
        }
        Ok(())
    }

    fn stuck(&self, stops: &[Stop]) -> String {
        let ended = stops.iter().filter(|&&stop| stop == Stop::Done).count();
        let mut waiting: Vec<(usize, usize)> = Vec::new();
        for stop in stops {
            let Stop::Barrier(at) = *stop else { continue };
            match waiting.iter_mut().find(|(place, _)| *place == at) {
                Some((_, count)) => *count += 1,
                None => waiting.push((at, 1)),
            }
        }
        let places = waiting.iter().map(|&(at, count)| format!("{count} warps wait at {}", self.instruction(at)));
        let places = places.collect::<Vec<_>>().join("; ");
        format!("{}: a barrier that is never complete: {places}; {ended} warps have ended", self.name())
    }

    // ---- memory ----

    /// Bytes of global memory, the access noted.
    pub fn global(
        &mut self,
        address: u64,
        len: usize,
        access: Access,
        at: usize,
        (warp, lane): (usize, usize),
    ) -> Result<&mut [u8], Fault> {
        let (buffer, offset) = self.memory.find_mut(address, len).map_err(|text| Fault { at, lane, text })?;
        if let (Some(history), Some(shadow)) = (&self.history, &mut buffer.shadow) {
            let hazard = shadow.touch(history, Space::Global, (offset, len), (warp, lane), access);
            if let Some(hazard) = hazard {
                self.note(hazard, at, warp, lane, &format!("global, {len} bytes at {address:#x}"));
            }
        }
        let (buffer, offset) = self.memory.find_mut(address, len).expect("it was there");
        Ok(&mut buffer.data[offset..offset + len])
    }

    /// Bytes of shared memory, the access noted.
    pub fn shared(
        &mut self,
        address: u64,
        len: usize,
        access: Access,
        at: usize,
        (warp, lane): (usize, usize),
    ) -> Result<&mut [u8], Fault> {
        let size = self.shared.len();
        let end = address.checked_add(len as u64).filter(|&end| end <= size as u64);
        let Some(end) = end.map(|end| end as usize) else {
            return Err(Fault {
                at,
                lane,
                text: format!("{len} bytes at {address:#x} of shared memory, which has {size}"),
            });
        };
        let start = end - len;
        if let Some(history) = &self.history {
            let hazard = self.shared_shadow.touch(history, Space::Shared, (start, len), (warp, lane), access);
            if let Some(hazard) = hazard {
                self.note(hazard, at, warp, lane, &format!("shared, {len} bytes at {start:#x}"));
            }
        }
        Ok(&mut self.shared[start..end])
    }

    /// Bytes of the parameter buffer.
    pub fn params(&mut self, address: u64, len: usize, at: usize, lane: usize) -> Result<&mut [u8], Fault> {
        let size = self.params.len();
        let range = usize::try_from(address).ok().and_then(|start| self.params.get_mut(start..start.checked_add(len)?));
        range.ok_or_else(|| Fault { at, lane, text: format!("{len} bytes at {address:#x} of {size} of parameters") })
    }

    /// A warp passes a barrier of its own.
    pub fn sync_warp(&mut self, warp: usize) {
        if let Some(history) = &mut self.history {
            history.sync_warp(warp);
        }
    }

    // ---- reports ----

    /// Keeps a finding, one of each kind for each instruction.
    fn note(&mut self, hazard: Hazard, at: usize, warp: usize, lane: usize, place: &str) {
        if self.reports.len() >= REPORTS_MAX || !self.told.insert((at, std::mem::discriminant(&hazard))) {
            return;
        }
        let by = |other: Thread| format!("block {} thread {}", other.block, other.thread);
        let text = match hazard {
            Hazard::Uninitialised => format!("uninitialised read ({place})"),
            Hazard::OnTheWay(other) => format!("touches what a cp.async of {} has under way ({place})", by(other)),
            Hazard::ReadAfterWrite(other) => format!("race: reads what {} wrote ({place})", by(other)),
            Hazard::WriteAfterRead(other) => format!("race: writes what {} read ({place})", by(other)),
            Hazard::WriteAfterWrite(other) => format!("race: writes what {} wrote ({place})", by(other)),
        };
        let report = self.tell(warp, &Fault { at, lane, text });
        self.reports.push(report);
    }

    fn name(&self) -> String {
        format!("{}, block {}", self.kernel.name, self.number())
    }

    fn tell(&self, warp: usize, fault: &Fault) -> String {
        let thread = warp * LANES + fault.lane;
        format!("{}, thread {thread}: {}; {}", self.name(), fault.text, self.instruction(fault.at))
    }

    /// An instruction, its line, and its source's.
    fn instruction(&self, at: usize) -> String {
        let instruction = &self.kernel.instructions[at];
        let source = self.kernel.source_line(instruction.source).map_or(String::new(), |source| format!(" ({source})"));
        format!("PTX line {}{source}: {}", instruction.line, self.kernel.texts[at])
    }
}

/// Who is at each of a block's 16 barriers.
#[derive(Default)]
struct Arrivals {
    places: [Arrival; 16],
}

#[derive(Default)]
struct Arrival {
    count: u32,
    holds: u32,
    /// Warps, and the instruction where each is.
    waiting: Vec<(usize, usize)>,
    /// What was known to those that do not wait.
    arrived: Vec<Vec<u32>>,
}
