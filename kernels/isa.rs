//! Which instructions this machine has, and which of them to use.

use std::sync::OnceLock;

/// A level of instructions; a higher one includes every lower one of its architecture, but for [`Isa::AvxVnni`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Plain Rust, compiled for the architecture's baseline.
    Portable,
    /// aarch64 with Advanced SIMD.
    Neon,
    /// The same with matrix products of bf16.
    NeonBf16,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// The same with dot products of whole numbers (AVX-VNNI); processors with AVX-512 may lack it.
    AvxVnni,
    /// AVX-512 F, BW, DQ, VL.
    Avx512,
    /// AVX-512 with dot products of bytes (VNNI).
    Avx512Vnni,
    /// The same with dot products of bf16.
    Avx512Bf16,
    /// AMX tiles with bf16 products, and the operating system's permission to use them.
    Amx,
}

impl Isa {
    /// Every level of every architecture, lowest first.
    pub const ALL: [Isa; 9] = [
        Isa::Portable,
        Isa::Neon,
        Isa::NeonBf16,
        Isa::Avx2,
        Isa::AvxVnni,
        Isa::Avx512,
        Isa::Avx512Vnni,
        Isa::Avx512Bf16,
        Isa::Amx,
    ];

    /// The name that `DLLM_ISA`, options and reports use.
    pub const fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Neon => "neon",
            Isa::NeonBf16 => "neonbf16",
            Isa::Avx2 => "avx2",
            Isa::AvxVnni => "avxvnni",
            Isa::Avx512 => "avx512",
            Isa::Avx512Vnni => "avx512vnni",
            Isa::Avx512Bf16 => "avx512bf16",
            Isa::Amx => "amx",
        }
    }

    /// The level of that name.
    pub fn named(name: &str) -> Option<Isa> {
        Isa::ALL.into_iter().find(|isa| isa.name() == name)
    }

    /// The levels this machine can run, lowest first: what every kernel test loops over.
    ///
    /// The first call asks the kernel for AMX where the processor has it; threads made later inherit the permission.
    pub fn available() -> &'static [Isa] {
        static LEVELS: OnceLock<Vec<Isa>> = OnceLock::new();
        LEVELS.get_or_init(detect)
    }

    /// The highest level at or below `limit` that this machine can run; never higher than detected.
    pub fn best(limit: Option<Isa>) -> Isa {
        let allowed = |isa: &&Isa| limit.is_none_or(|limit| **isa <= limit);
        Isa::available().iter().rev().find(allowed).copied().unwrap_or(Isa::Portable)
    }
}

#[cfg(target_arch = "x86_64")]
fn detect() -> Vec<Isa> {
    let mut levels = vec![Isa::Portable];
    if !has_avx2() {
        return levels;
    }
    levels.push(Isa::Avx2);
    levels.extend(is_x86_feature_detected!("avxvnni").then_some(Isa::AvxVnni));
    let has = [
        (Isa::Avx512, has_avx512()),
        (Isa::Avx512Vnni, is_x86_feature_detected!("avx512vnni") && is_x86_feature_detected!("popcnt")),
        (Isa::Avx512Bf16, is_x86_feature_detected!("avx512bf16")),
        (Isa::Amx, amx::allowed()),
    ];
    // Each of these needs all those below it: a machine with a gap stops at the gap.
    levels.extend(has.into_iter().take_while(|(_, has)| *has).map(|(isa, _)| isa));
    levels
}

#[cfg(target_arch = "x86_64")]
fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
}

#[cfg(target_arch = "x86_64")]
fn has_avx512() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
}

#[cfg(target_arch = "aarch64")]
fn detect() -> Vec<Isa> {
    let bf16 = std::arch::is_aarch64_feature_detected!("bf16").then_some(Isa::NeonBf16);
    [Isa::Portable, Isa::Neon].into_iter().chain(bf16).collect()
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn detect() -> Vec<Isa> {
    vec![Isa::Portable]
}

/// The standard library cannot detect AMX on a stable compiler (rust-lang/rust#126622), so this does.
#[cfg(target_arch = "x86_64")]
mod amx {
    use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};

    /// The processor has AMX tiles with bf16, the system saves their state, and this process may use them.
    pub fn allowed() -> bool {
        in_processor() && saved_by_system() && permitted()
    }

    fn in_processor() -> bool {
        if __cpuid(0).eax < 7 {
            return false;
        }
        let edx = __cpuid_count(7, 0).edx; // bit 22 AMX-BF16, 24 AMX-TILE, 25 AMX-INT8
        [22, 24, 25].iter().all(|bit| edx >> bit & 1 == 1)
    }

    fn saved_by_system() -> bool {
        let osxsave = __cpuid(1).ecx >> 27 & 1 == 1;
        // SAFETY: OSXSAVE says that XGETBV is there.
        osxsave && unsafe { xcr0() } >> 17 & 0b11 == 0b11 // bits 17 TILECFG, 18 TILEDATA
    }

    #[target_feature(enable = "xsave")]
    fn xcr0() -> u64 {
        // SAFETY: register 0 always exists where XGETBV does.
        unsafe { _xgetbv(0) }
    }

    /// arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA). It fails on kernels before 5.16, and with ENOSPC where
    /// a thread has too small an alternate signal stack.
    #[cfg(target_os = "linux")]
    fn permitted() -> bool {
        // SAFETY: the call takes two integers and only widens what this process may use.
        unsafe { libc::syscall(libc::SYS_arch_prctl, 0x1023, 18) == 0 }
    }
    #[cfg(not(target_os = "linux"))]
    fn permitted() -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_lowers_and_never_raises() {
        let top = *Isa::available().last().unwrap();
        assert_eq!(Isa::best(None), top);
        assert_eq!(Isa::best(Some(Isa::Portable)), Isa::Portable);
        assert_eq!(Isa::best(Some(Isa::Amx)), top);
    }

    #[test]
    fn every_name_is_read_back() {
        for isa in Isa::ALL {
            assert_eq!(Isa::named(isa.name()), Some(isa));
        }
        assert_eq!(Isa::named("AVX2"), None);
    }
}
