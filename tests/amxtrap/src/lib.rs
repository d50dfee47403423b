//! Emulates the AMX instructions that the kernels use, from the SIGILL that a processor without AMX raises.
//!
//! Written from Intel's SDM, volume 2 (LDTILECFG, TILERELEASE, TILEZERO, TILELOADD, TILESTORED, TDPBF16PS, TDPBSSD), and
//! knowing nothing of the kernels: what the processor would refuse (an unconfigured tile, shapes that do not fit) stays a
//! SIGILL. A product of two bf16 is exact in f32 unless it leaves f32's range, where this rounds once more than AMX.

#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

mod decode;
mod tiles;

use decode::{Address, Instruction};
use libc::{REG_RIP, SA_SIGINFO, SIG_DFL, SIGILL, c_int, c_void, siginfo_t, ucontext_t};
use std::cell::UnsafeCell;
use std::sync::Once;
use tiles::Tiles;

struct Thread {
    tiles: Tiles,
    emulated: u64,
}

thread_local! {
    // Without a destructor or a lazy start, so that the handler may touch it.
    static THREAD: UnsafeCell<Thread> = const { UnsafeCell::new(Thread { tiles: Tiles::NEW, emulated: 0 }) };
}

/// Installs the handler; again does nothing. Where the processor has AMX, nothing traps and nothing is emulated.
pub fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: a zeroed sigaction is a valid one; the handler touches only this thread's state and the context.
        let failed = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_sigill as *const () as usize;
            action.sa_flags = SA_SIGINFO;
            libc::sigaction(SIGILL, &action, std::ptr::null_mut())
        };
        assert_eq!(failed, 0, "sigaction(SIGILL) failed");
    });
}

/// Instructions emulated on this thread.
pub fn emulated() -> u64 {
    THREAD.with(|thread| {
        // SAFETY: the handler runs on this thread only, and not during this read.
        unsafe { (*thread.get()).emulated }
    })
}

/// Does this thread hold no tile configuration?
pub fn released() -> bool {
    THREAD.with(|thread| {
        // SAFETY: as in `emulated`.
        unsafe { !(*thread.get()).tiles.configured() }
    })
}

extern "C" fn on_sigill(_: c_int, _: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: the system passes this thread's context, whose instruction pointer is at the trapped instruction.
    let registers = unsafe { &mut (*context.cast::<ucontext_t>()).uc_mcontext.gregs };
    let at = registers[REG_RIP as usize] as *const u8;
    // SAFETY: the decoder reads byte after byte and stops at the first that is not AMX's.
    let decoded = decode::decode(|i| unsafe { *at.add(i) });
    let done = decoded.is_some_and(|(instruction, len)| {
        registers[REG_RIP as usize] += len as i64;
        THREAD.with(|thread| {
            // SAFETY: nothing else on this thread holds it: the interrupted code is an AMX instruction.
            let thread = unsafe { &mut *thread.get() };
            thread.emulated += 1;
            run(&mut thread.tiles, instruction, registers)
        })
    });
    if !done {
        registers[REG_RIP as usize] = at as i64;
        // SAFETY: back to the default, so that the instruction, run again, ends the process as it would without us.
        unsafe { libc::signal(SIGILL, SIG_DFL) };
    }
}

/// False where the processor would refuse.
fn run(tiles: &mut Tiles, instruction: Instruction, registers: &[i64; 23]) -> bool {
    let at = |address: &Address| address.resolve(registers);
    // SAFETY: the interrupted program gave these addresses to the processor.
    unsafe {
        match instruction {
            Instruction::LoadConfig(address) => tiles.configure(*(at(&address).0 as *const [u8; 64])),
            Instruction::Release => tiles.release(),
            Instruction::Zero(tile) => tiles.zero(tile),
            Instruction::Load(tile, address) => tiles.load(tile, at(&address).0 as *const u8, at(&address).1),
            Instruction::Store(address, tile) => tiles.store(at(&address).0 as *mut u8, at(&address).1, tile),
            Instruction::Dot { sum, a, b } => tiles.dot(sum, a, b),
            Instruction::DotBytes { sum, a, b } => tiles.dot_bytes(sum, a, b),
        }
    }
}
