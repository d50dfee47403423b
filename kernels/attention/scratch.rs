//! A caller's vector cut into the buffers of one call, each on a cache line. It knows no attention.

use crate::Real;

/// Every buffer's length and every row of lanes is a multiple of this; it is a cache line of f32.
pub(super) const PAD: usize = 16;

/// `n` rounded up to whole lanes.
pub(super) const fn padded(n: usize) -> usize {
    n.next_multiple_of(PAD)
}

/// N buffers of at least the given lengths, aligned to 64 bytes; old values stay in them.
#[inline(always)]
pub(super) fn buffers<R: Real, const N: usize>(scratch: &mut Vec<R>, lens: [usize; N]) -> [&mut [R]; N] {
    let lens = lens.map(padded);
    let total = lens.iter().sum::<usize>() + PAD; // the alignment skips less than a line
    if scratch.len() < total {
        scratch.resize(total, R::ZERO);
    }
    // align_offset may refuse in theory (it does under Miri); unaligned is only slower.
    let skip = scratch.as_ptr().align_offset(64);
    let mut rest = &mut scratch[if skip < PAD { skip } else { 0 }..];
    lens.map(|len| {
        let (buffer, tail) = std::mem::take(&mut rest).split_at_mut(len);
        rest = tail;
        buffer
    })
}
