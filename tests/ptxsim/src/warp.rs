//! A warp: 32 threads that run an instruction at a time, those together that are at the same one.
//!
//! Of threads that have parted, those furthest behind in the text run first, so that they meet again where branches join.

use crate::arithmetic::{flush, saturate};
use crate::kernel::{Action, Address, Fixed, Instruction, Op, Place, Predicate, Register, Shuffle, Transfer, Vote};
use crate::lanes::{ALL, LANES, Lanes, blend, lanes};
use crate::matrix;
use crate::memory::{LOCAL, NEVER_WRITTEN, SHARED};
use crate::run::{Block, Fault};
use crate::shadow::Access;

/// A `cp.async` on its way.
struct Copy {
    lane: usize,
    /// The lane's group that it is in.
    group: u32,
    to: usize,
    bytes: [u8; 16],
    len: usize,
    /// The instruction that began it.
    at: usize,
}

/// Why a warp stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// All its threads have ended.
    Done,
    /// It is at this instruction, a barrier of the block.
    Barrier(usize),
    /// It has run long enough for now.
    Slice,
}

/// A warp's registers and places.
pub struct Warp {
    pub index: usize,
    registers: Vec<Lanes>,
    predicates: Vec<u32>,
    places: [u32; LANES],
    /// Threads that the warp began with.
    born: u32,
    /// And those that have not ended.
    live: u32,
    local: Vec<u8>,
    copies: Vec<Copy>,
    groups: [u32; LANES],
    /// Instructions run in this block.
    pub run: u64,
}

impl Warp {
    /// Warp number `index` of every block that this one stands for.
    pub fn new(block: &Block, index: usize) -> Self {
        let kernel = block.kernel;
        let threads = block.threads() - index * LANES;
        let mut warp = Self {
            index,
            registers: vec![[0; LANES]; kernel.registers as usize],
            predicates: vec![0; kernel.predicates as usize],
            places: [0; LANES],
            born: if threads >= LANES { ALL } else { (1 << threads) - 1 },
            live: 0,
            local: vec![NEVER_WRITTEN; kernel.local * LANES],
            copies: Vec::new(),
            groups: [0; LANES],
            run: 0,
        };
        warp.begin(block);
        warp
    }

    /// At the start of a block.
    pub fn begin(&mut self, block: &Block) {
        self.places = [0; LANES];
        self.live = self.born;
        self.local.fill(NEVER_WRITTEN);
        self.copies.clear();
        self.groups = [0; LANES];
        self.run = 0;
        self.predicates[crate::kernel::TRUE as usize] = ALL;
        for &(register, fixed) in &block.kernel.fixed {
            self.registers[register as usize] = std::array::from_fn(|lane| self.fixed(block, fixed, lane));
        }
    }

    fn fixed(&self, block: &Block, fixed: Fixed, lane: usize) -> u64 {
        let thread = self.index * LANES + lane;
        let [x, y, _] = block.size.map(|size| size as usize);
        u64::from(match fixed {
            Fixed::Constant(value) => return value,
            Fixed::Thread(dimension) => return [thread % x, thread / x % y, thread / x / y][dimension] as u64,
            Fixed::BlockSize(dimension) => block.size[dimension],
            Fixed::Block(dimension) => block.place[dimension],
            Fixed::GridSize(dimension) => block.grid[dimension],
            Fixed::Lane => lane as u32,
            Fixed::Warp => self.index as u32,
            Fixed::Warps => block.threads().div_ceil(LANES) as u32,
            Fixed::LanesLess => (1 << lane) - 1,
            Fixed::LanesLessEqual => ALL >> (31 - lane),
            Fixed::LanesEqual => 1 << lane,
            Fixed::LanesGreaterEqual => ALL << lane,
            Fixed::LanesGreater => !(ALL >> (31 - lane)),
            Fixed::DynamicShared => block.kernel.shared as u32,
            Fixed::Zero => 0,
        })
    }

    /// Whether all threads that the warp began with are here.
    pub fn is_whole(&self, at: usize) -> bool {
        self.live == self.born && lanes(self.live).all(|lane| self.places[lane] as usize == at)
    }
    /// Threads that are there, have ended, and are elsewhere.
    pub fn census(&self, at: usize) -> [u32; 3] {
        let here = lanes(self.live).filter(|&lane| self.places[lane] as usize == at).count() as u32;
        [here, (self.born & !self.live).count_ones(), self.live.count_ones() - here]
    }
    /// Threads it began with.
    pub fn threads(&self) -> u32 {
        self.born.count_ones()
    }
    /// Goes on behind the barrier it stopped at.
    pub fn pass(&mut self, at: usize) {
        self.places = [at as u32 + 1; LANES];
    }
    /// The lanes for which a predicate holds.
    pub fn holds(&self, predicate: Predicate) -> u32 {
        (self.predicates[predicate.index as usize] ^ predicate.flip) & self.born
    }
    /// A register's value, the same in all lanes.
    pub fn uniform(&self, register: Register) -> u64 {
        self.registers[register as usize][self.born.trailing_zeros() as usize]
    }
    /// Gives all lanes a value.
    pub fn set(&mut self, register: Register, value: u64) {
        self.registers[register as usize] = [value; LANES];
    }
    /// Gives all lanes a truth.
    pub fn set_predicate(&mut self, register: Register, value: bool) {
        self.predicates[register as usize] = if value { ALL } else { 0 };
    }

    /// Runs until it stops, or for about `slice` instructions.
    pub fn run(&mut self, block: &mut Block, slice: u64) -> Result<Stop, Fault> {
        let kernel = block.kernel;
        let end = self.run + slice;
        while self.live != 0 {
            if self.run >= end {
                return Ok(Stop::Slice);
            }
            let (start, group, meeting) = self.furthest_behind();
            let mut at = start;
            loop {
                let instruction = &kernel.instructions[at];
                self.run += 1;
                let guard = instruction.guard;
                let active = group & (self.predicates[guard.index as usize] ^ guard.flip);
                match &instruction.op {
                    Op::Branch { to } => {
                        if active == group && group == self.live && self.run < end {
                            at = *to as usize;
                            continue;
                        }
                        self.move_to(group & !active, at + 1);
                        self.move_to(active, *to as usize);
                        break;
                    }
                    Op::Switch { by, to } => {
                        self.move_to(group, at + 1);
                        for lane in lanes(active) {
                            let target = self.registers[*by as usize][lane] as u32 as usize;
                            let target =
                                to.get(target).ok_or_else(|| Fault::of(at, lane, "a branch past its table"))?;
                            self.places[lane] = *target;
                        }
                        break;
                    }
                    Op::Exit => {
                        self.move_to(group, at + 1);
                        self.live &= !active;
                        break;
                    }
                    Op::Barrier(_) if active == group => {
                        self.move_to(group, at);
                        return Ok(Stop::Barrier(at));
                    }
                    Op::Barrier(_) if active != 0 => {
                        let text = format!("a barrier for lanes {active:#010x} of {group:#010x} only");
                        return Err(Fault::of(at, active.trailing_zeros() as usize, &text));
                    }
                    _ => self.execute(block, instruction, at, active)?,
                }
                at += 1;
                if at >= meeting {
                    self.move_to(group, at);
                    break;
                }
            }
        }
        Ok(Stop::Done)
    }

    fn move_to(&mut self, group: u32, at: usize) {
        if group == ALL {
            self.places = [at as u32; LANES];
        } else {
            lanes(group).for_each(|lane| self.places[lane] = at as u32);
        }
    }

    /// The first place where a thread is, who is there, and where they may meet another.
    fn furthest_behind(&self) -> (usize, u32, usize) {
        let (mut first, mut group, mut next) = (u32::MAX, 0, u32::MAX);
        for lane in lanes(self.live) {
            let place = self.places[lane];
            if place < first {
                (next, first, group) = (first, place, 0);
            } else if place > first {
                next = next.min(place);
            }
            group |= u32::from(place == first) << lane;
        }
        (first as usize, group, next as usize)
    }

    fn execute(&mut self, block: &mut Block, instruction: &Instruction, at: usize, active: u32) -> Result<(), Fault> {
        match &instruction.op {
            Op::Map { map, to, from, flush: flushes, saturate: saturates } => {
                let mut result = [0; LANES];
                let from = from.map(|register| &self.registers[register as usize]);
                if *flushes {
                    let flushed = from.map(flush);
                    map(flushed.each_ref(), &mut result);
                    result = flush(&result);
                } else {
                    map(from, &mut result);
                }
                if *saturates {
                    saturate(&mut result);
                }
                blend(&mut self.registers[*to as usize], &result, active);
            }
            Op::Test { test, from, flush: flushes, with, to } => {
                let from = from.map(|register| &self.registers[register as usize]);
                let holds = if *flushes { test(from.map(flush).each_ref()) } else { test(from) };
                let [mut yes, mut no] = [holds, !holds];
                if let Some((logic, other)) = with {
                    let other = self.predicates[other.index as usize] ^ other.flip;
                    (yes, no) = (logic(yes, other), logic(no, other));
                }
                self.write_predicate(to[1], no, active);
                self.write_predicate(to[0], yes, active);
            }
            Op::Select { to, from, by } => {
                let chosen = self.predicates[by.index as usize] ^ by.flip;
                let mut result = self.registers[from[1] as usize];
                blend(&mut result, &self.registers[from[0] as usize], chosen);
                blend(&mut self.registers[*to as usize], &result, active);
            }
            Op::Logic { of, to, from } => {
                let [a, b] = from.map(|from| self.predicates[from.index as usize] ^ from.flip);
                self.write_predicate(*to, of(a, b), active);
            }
            Op::Unpack { to, from, bits } => {
                let whole = self.registers[*from as usize];
                for (i, &to) in to.iter().enumerate() {
                    let part = whole.map(|whole| whole >> (bits * i as u32) & ((1 << bits) - 1));
                    blend(&mut self.registers[to as usize], &part, active);
                }
            }
            Op::Pack { to, from, bits } => {
                let mut whole = [0; LANES];
                for (i, &from) in from.iter().enumerate() {
                    let part = &self.registers[from as usize];
                    whole.iter_mut().zip(part).for_each(|(whole, part)| {
                        *whole |= (part & ((1 << bits) - 1)) << (bits * i as u32);
                    });
                }
                blend(&mut self.registers[*to as usize], &whole, active);
            }
            Op::Transfer(transfer) => self.transfer(block, transfer, at, active)?,
            Op::CopyAsync { to, from, bytes, wanted } => {
                for lane in lanes(active) {
                    let wanted = wanted.map_or(*bytes, |wanted| self.registers[wanted as usize][lane] as u32 as usize);
                    self.begin_copy(block, (*to, *from), *bytes, wanted.min(*bytes), at, lane)?;
                }
            }
            Op::Commit => lanes(active).for_each(|lane| self.groups[lane] += 1),
            Op::Wait(groups) => self.end_copies(block, *groups, active),
            Op::SyncWarp { mask } => {
                self.expect_together(*mask, active, at)?;
                block.sync_warp(self.index);
            }
            Op::Shuffle { .. } => self.shuffle(&instruction.op, active, at)?,
            Op::Vote { how, to, of, mask } => {
                self.expect_together(*mask, active, at)?;
                let holds = (self.predicates[of.index as usize] ^ of.flip) & active;
                match how {
                    Vote::Ballot => blend(&mut self.registers[*to as usize], &[holds.into(); LANES], active),
                    Vote::All => self.write_predicate(*to, if holds == active { ALL } else { 0 }, active),
                    Vote::Any => self.write_predicate(*to, if holds != 0 { ALL } else { 0 }, active),
                    Vote::Uniform => {
                        self.write_predicate(*to, if holds == active || holds == 0 { ALL } else { 0 }, active)
                    }
                }
            }
            Op::Match { all, wide, to, found, of, mask } => {
                self.expect_together(*mask, active, at)?;
                let values =
                    self.registers[*of as usize].map(|value| if *wide { value } else { u64::from(value as u32) });
                let equal = |lane: usize| {
                    lanes(active)
                        .filter(|&other| values[other] == values[lane])
                        .fold(0u32, |mask, other| mask | 1 << other)
                };
                let mut result = [0; LANES];
                lanes(active).for_each(|lane| result[lane] = u64::from(equal(lane)));
                let one = lanes(active).all(|lane| result[lane] == u64::from(active));
                if *all && !one {
                    result = [0; LANES];
                }
                self.write_predicate(*found, if one { ALL } else { 0 }, active);
                blend(&mut self.registers[*to as usize], &result, active);
            }
            Op::Reduce { update, to, of, mask } => {
                self.expect_together(*mask, active, at)?;
                let values = self.registers[*of as usize];
                let result = lanes(active).map(|lane| values[lane]).reduce(|a, b| update(a, b, 0)).unwrap_or(0);
                blend(&mut self.registers[*to as usize], &[result; LANES], active);
            }
            Op::ActiveMask { to } => blend(&mut self.registers[*to as usize], &[active.into(); LANES], active),
            Op::Mma { factor, to, a, b, c } => {
                self.expect_whole(active, at)?;
                matrix::product(&mut self.registers, *factor, *to, a, b, *c);
            }
            Op::LoadMatrices { to, from, transposed } => {
                self.expect_whole(active, at)?;
                self.load_matrices(block, to, *from, *transposed, at)?;
            }
            Op::Trap if active != 0 => return Err(Fault::of(at, active.trailing_zeros() as usize, "a trap")),
            // A barrier gets here if its guard holds in no lane.
            Op::Trap | Op::Barrier(_) | Op::Nothing => {}
            Op::Branch { .. } | Op::Switch { .. } | Op::Exit => unreachable!("run does these"),
        }
        Ok(())
    }

    fn write_predicate(&mut self, to: Register, value: u32, active: u32) {
        let predicate = &mut self.predicates[to as usize];
        *predicate = (*predicate & !active) | (value & active);
    }

    /// An instruction for the lanes of a mask must be run by exactly those together.
    fn expect_together(&self, mask: Register, active: u32, at: usize) -> Result<(), Fault> {
        let masks = &self.registers[mask as usize];
        match lanes(active).find(|&lane| masks[lane] as u32 != active) {
            Some(lane) => {
                let text = format!("lanes {:#010x} are named, lanes {active:#010x} are here", masks[lane] as u32);
                Err(Fault::of(at, lane, &text))
            }
            None => Ok(()),
        }
    }

    fn expect_whole(&self, active: u32, at: usize) -> Result<(), Fault> {
        if active == ALL {
            return Ok(());
        }
        let lane = active.trailing_zeros() as usize % LANES;
        Err(Fault::of(at, lane, &format!("all lanes are needed, lanes {active:#010x} are here")))
    }

    fn shuffle(&mut self, op: &Op, active: u32, at: usize) -> Result<(), Fault> {
        let &Op::Shuffle { how, to, found, from, by, clamp, mask } = op else { unreachable!("called for a shuffle") };
        self.expect_together(mask, active, at)?;
        let values = self.registers[from as usize];
        let (mut result, mut within) = ([0; LANES], 0);
        for lane in lanes(active) {
            let by = self.registers[by as usize][lane] as usize & 31;
            let clamp = self.registers[clamp as usize][lane] as usize;
            let segment = clamp >> 8 & 31;
            let (least, greatest) = (lane & segment, (lane & segment) | (clamp & 31 & !segment));
            let (other, inside) = match how {
                Shuffle::Up => (lane.wrapping_sub(by), lane >= by && lane - by >= greatest),
                Shuffle::Down => (lane + by, lane + by <= greatest),
                Shuffle::Butterfly => (lane ^ by, lane ^ by <= greatest),
                Shuffle::Index => (least | (by & !segment), (least | (by & !segment)) <= greatest),
            };
            let other = if inside { other } else { lane };
            if active >> other & 1 == 0 {
                return Err(Fault::of(at, lane, &format!("lane {lane} reads lane {other}, which takes no part")));
            }
            within |= u32::from(inside) << lane;
            result[lane] = u64::from(values[other] as u32);
        }
        self.write_predicate(found, within, active);
        blend(&mut self.registers[to as usize], &result, active);
        Ok(())
    }

    fn address(&self, address: Address, lane: usize) -> u64 {
        self.registers[address.base as usize][lane].wrapping_add(address.offset as u64)
    }

    fn transfer(&mut self, block: &mut Block, transfer: &Transfer, at: usize, active: u32) -> Result<(), Fault> {
        let len = transfer.bytes * transfer.values.len();
        for lane in lanes(active) {
            let mut address = self.address(transfer.address, lane);
            if address & (len as u64 - 1) != 0 {
                return Err(Fault::of(at, lane, &format!("{len} bytes at {address:#x}, which is not their multiple")));
            }
            let mut place = transfer.place;
            if place == Place::Generic {
                place = match address & (SHARED | LOCAL) {
                    SHARED => Place::Shared,
                    LOCAL => Place::Local,
                    _ => Place::Global,
                };
                address &= !(SHARED | LOCAL);
            }
            let thread = (self.index, lane);
            let access = match transfer.action {
                Action::Load { .. } => Access::Read,
                Action::Store => Access::Write,
                Action::Atomic { .. } => Access::Atomic,
            };
            let bytes: &mut [u8] = match place {
                Place::Global | Place::Generic => block.global(address, len, access, at, thread)?,
                Place::Shared => block.shared(address, len, access, at, thread)?,
                Place::Local => {
                    let size = self.local.len() / LANES;
                    let own = &mut self.local[lane * size..(lane + 1) * size];
                    let range =
                        usize::try_from(address).ok().and_then(|start| own.get_mut(start..start.checked_add(len)?));
                    range.ok_or_else(|| {
                        Fault::of(at, lane, &format!("{len} bytes at {address:#x} of {size} of its own"))
                    })?
                }
                Place::Param => block.params(address, len, at, lane)?,
            };
            perform(transfer, &mut self.registers, bytes, lane);
        }
        Ok(())
    }

    fn begin_copy(
        &mut self,
        block: &mut Block,
        (to, from): (Address, Address),
        len: usize,
        wanted: usize,
        at: usize,
        lane: usize,
    ) -> Result<(), Fault> {
        let (to, from) = (self.address(to, lane), self.address(from, lane));
        if (to | from) & (len as u64 - 1) != 0 {
            let text = format!("{len} bytes from {from:#x} to {to:#x}, which are not both their multiple");
            return Err(Fault::of(at, lane, &text));
        }
        let thread = (self.index, lane);
        let mut bytes = [0; 16];
        if wanted > 0 {
            bytes[..wanted].copy_from_slice(block.global(from, wanted, Access::Read, at, thread)?);
        }
        block.shared(to, len, Access::Begin, at, thread)?.fill(NEVER_WRITTEN);
        self.copies.push(Copy { lane, group: self.groups[lane], to: to as usize, bytes, len, at });
        Ok(())
    }

    /// Ends the copies of these lanes that are in all but the last so many groups.
    fn end_copies(&mut self, block: &mut Block, groups: Option<usize>, active: u32) {
        let (groups_begun, index) = (self.groups, self.index);
        self.copies.retain(|copy| {
            let open = groups.is_some_and(|groups| copy.group + groups as u32 >= groups_begun[copy.lane]);
            if open || active >> copy.lane & 1 == 0 {
                return true;
            }
            let place = block.shared(copy.to as u64, copy.len, Access::End, copy.at, (index, copy.lane));
            place.expect("it was in bounds when it began").copy_from_slice(&copy.bytes[..copy.len]);
            false
        });
    }

    fn load_matrices(
        &mut self,
        block: &mut Block,
        to: &[Register],
        from: Address,
        transposed: bool,
        at: usize,
    ) -> Result<(), Fault> {
        let mut loaded = [[0; LANES]; 4];
        for (matrix, loaded) in loaded[..to.len()].iter_mut().enumerate() {
            let mut rows = [[0; 16]; 8];
            for (row, bytes) in rows.iter_mut().enumerate() {
                let lane = 8 * matrix + row;
                let address = self.address(from, lane);
                if !address.is_multiple_of(16) {
                    return Err(Fault::of(at, lane, &format!("a row at {address:#x}, which is no multiple of 16")));
                }
                bytes.copy_from_slice(block.shared(address, 16, Access::Read, at, (self.index, lane))?);
            }
            *loaded = std::array::from_fn(|lane| matrix::fragment(&rows, lane, transposed));
        }
        for (&to, loaded) in to.iter().zip(&loaded) {
            self.registers[to as usize] = *loaded;
        }
        Ok(())
    }
}

/// A lane's part of a load, store or atomic instruction, on the bytes it names.
fn perform(transfer: &Transfer, registers: &mut [Lanes], bytes: &mut [u8], lane: usize) {
    let size = transfer.bytes;
    let read = |bytes: &[u8]| {
        let mut word = [0; 8];
        word[..size].copy_from_slice(&bytes[..size]);
        u64::from_le_bytes(word)
    };
    match transfer.action {
        Action::Load { signed } => {
            let unused = 64 - 8 * size as u32;
            for (&to, bytes) in transfer.values.iter().zip(bytes.chunks_exact(size)) {
                let value = read(bytes);
                let value = if signed { ((value << unused) as i64 >> unused) as u64 } else { value };
                registers[to as usize][lane] = value;
            }
        }
        Action::Store => {
            for (&from, bytes) in transfer.values.iter().zip(bytes.chunks_exact_mut(size)) {
                bytes.copy_from_slice(&registers[from as usize][lane].to_le_bytes()[..size]);
            }
        }
        Action::Atomic { update, operands } => {
            let old = read(bytes);
            let [a, b] = operands.map(|operand| registers[operand as usize][lane]);
            bytes.copy_from_slice(&update(old, a, b).to_le_bytes()[..size]);
            registers[transfer.values[0] as usize][lane] = old;
        }
    }
}
