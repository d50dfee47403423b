//! One table of kernels per number type and instruction level.

use crate::{Elem, Isa, adamw, attention, cross_entropy, dropout, embedding, linear, rmsnorm, rope, swiglu};
use half::bf16;

/// Every operation's form for one number type at one instruction level.
///
/// A `&Kernels` exists only for levels this machine has (see [`Elem::kernels`]), so the unsafe forms inside may be
/// called once their slices' lengths are checked; each operation's module does that in its wrapper on this type.
pub struct Kernels<E: Elem> {
    /// The level these forms are compiled for.
    pub isa: Isa,
    pub(crate) adamw: adamw::Forms<E>,
    pub(crate) attention: attention::Forms<E>,
    pub(crate) cross_entropy: cross_entropy::Forms<E>,
    pub(crate) dropout: dropout::Forms<E>,
    pub(crate) embedding: embedding::Forms<E>,
    pub(crate) linear: linear::Forms<E>,
    pub(crate) rmsnorm: rmsnorm::Forms<E>,
    pub(crate) rope: rope::Forms<E>,
    pub(crate) swiglu: swiglu::Forms<E>,
}

/// An operation without a form of its own for a level takes the next lower one inside its `at`.
macro_rules! tables {
    ($($elem:ty: $tables:ident),*) => {$(
        static $tables: [Kernels<$elem>; Isa::ALL.len()] = {
            const fn at(isa: Isa) -> Kernels<$elem> {
                Kernels {
                    isa,
                    adamw: adamw::Forms::<$elem>::at(isa),
                    attention: attention::Forms::<$elem>::at(isa),
                    cross_entropy: cross_entropy::Forms::<$elem>::at(isa),
                    dropout: dropout::Forms::<$elem>::at(isa),
                    embedding: embedding::Forms::<$elem>::at(isa),
                    linear: linear::Forms::<$elem>::at(isa),
                    rmsnorm: rmsnorm::Forms::<$elem>::at(isa),
                    rope: rope::Forms::<$elem>::at(isa),
                    swiglu: swiglu::Forms::<$elem>::at(isa),
                }
            }
            [
                at(Isa::Portable),
                at(Isa::Neon),
                at(Isa::NeonBf16),
                at(Isa::Avx2),
                at(Isa::AvxVnni),
                at(Isa::Avx512),
                at(Isa::Avx512Vnni),
                at(Isa::Avx512Bf16),
                at(Isa::Amx),
            ]
        };
        impl Kernels<$elem> {
            pub(crate) fn table(isa: Isa) -> &'static Self {
                &$tables[Isa::best(Some(isa)) as usize]
            }
        }
    )*};
}
tables!(f32: F32, bf16: BF16, f64: F64);

#[cfg(target_arch = "x86_64")]
impl Kernels<bf16> {
    /// The AMX table on any machine, for the test that emulates its instructions.
    pub(crate) fn amx() -> &'static Self {
        &BF16[Isa::Amx as usize]
    }
}
