//! Products on a GPU: by cuBLASLt what it is there for, many rows times a frozen weight, and all others by own kernels.

use super::Gpu;
use super::blaslt::{ALIGNED, Algorithm, Operands, Shape};
use super::queue::Work;
use dialoguellm_kernels::bf16;
use dialoguellm_kernels::cuda::Ptr;
use dialoguellm_kernels::linear::Sum;
use dialoguellm_kernels::linear::cuda::{Out, Term, gemm};

/// Rows, columns and summed values from which on cuBLASLt multiplies: up to so many rows a product is bound by the reading
/// of its weight, and one that is narrower is LoRA's.
const ROWS: u32 = 17;
const WIDTH: u32 = 64;

impl Gpu {
    /// `out [m, n] = bias +` the sum of the terms: [`gemm`].
    ///
    /// Where cuBLASLt takes the longest term, own kernels put the others into `out` first, and it adds that one: in bf16
    /// the sum of the others is rounded on its way, and the whole as ever.
    pub(super) fn product(&self, out: Out, m: usize, n: usize, terms: &[Term], bias: Option<Ptr>) {
        let (m, n) = (m as u32, n as u32);
        let longest = (0..terms.len()).max_by_key(|&i| terms[i].k);
        let taken = longest.filter(|_| bias.is_none()).and_then(|i| Some((i, self.taken(out, [m, n], terms, i)?)));
        let Some((i, (shape, algorithm))) = taken else {
            return self.run(&gemm(out, m, n, terms, bias));
        };
        let others = [&terms[..i], &terms[i + 1..]].concat();
        if !others.is_empty() {
            self.run(&gemm(out, m, n, &others, None));
        }
        let workspace = self.array::<u8>(1, algorithm.workspace);
        let (Out::Act(c) | Out::Real(c) | Out::Add(c)) = out;
        let at = Operands { c, x: terms[i].x, w: terms[i].w, workspace: workspace.at() };
        // SAFETY: as in `run`: whoever calls checked the shapes; the workspace is given out again behind this in the stream.
        unsafe { self.ask(Work::Multiply(shape, algorithm, at)) };
    }

    /// The shape of term `i` and how cuBLASLt multiplies it, if it does.
    fn taken(&self, out: Out, [m, n]: [u32; 2], terms: &[Term], i: usize) -> Option<(Shape, Algorithm)> {
        let library = self.library.as_ref().ok()?;
        let term = terms[i];
        let (Out::Act(c) | Out::Real(c) | Out::Add(c)) = out;
        let aligned = [c, term.x, term.w].iter().all(|at| at.0.is_multiple_of(ALIGNED.into()))
            && [n, term.k].iter().all(|width| width.is_multiple_of(ALIGNED / size_of::<bf16>() as u32));
        if m < ROWS || n < WIDTH || term.k < WIDTH || !aligned {
            return None;
        }
        let (over_rows, real) = (term.sum == Sum::OverRows, !matches!(out, Out::Act(_)));
        let shape = Shape { m, n, k: term.k, over_rows, real, add: matches!(out, Out::Add(_)) || terms.len() > 1 };
        library.algorithm(&shape).map(|algorithm| (shape, algorithm))
    }
}
