//! AdamW over an adapter's flat parameters, and clipping by the global norm.
//!
//! Every parameter decays, A and B alike, as PEFT's do under torch.optim.AdamW with one parameter group. Clipping is
//! torch.nn.utils.clip_grad_norm_: factor min(1, max / (norm + 1e-6)). The kernel keeps PyTorch's order of operations.

use super::super::Pool;
use dialoguellm_kernels::adamw::{Options, Step};
use dialoguellm_kernels::{Elem, Isa, Real};
use std::sync::{Mutex, OnceLock, PoisonError};

/// Values that make one thread's task; fixed, so that the order of the norm's sum is.
const PIECE: usize = 1 << 16;

/// First and second moments, one value a parameter, and what the gradient that was last measured is multiplied by; nothing
/// where it must not be used.
pub struct Moments {
    pub(super) m: Vec<f32>,
    pub(super) v: Vec<f32>,
    scale: Option<f64>,
}

impl Moments {
    pub(super) fn new(m: Vec<f32>, v: Vec<f32>) -> Self {
        Self { m, v, scale: None }
    }

    /// The gradient's norm; the update after it clips by it, and does nothing where the norm or the loss is not `finite`.
    pub(super) fn measure<R: Real>(&mut self, pool: &Pool, gradient: &[R], clip: f64, finite: bool) -> f64 {
        let norm = norm(pool, gradient);
        self.scale = (finite && norm.is_finite()).then(|| clip_factor(norm, clip));
        norm
    }

    /// Update number `t`, counted from 1, by the gradient that was measured.
    pub(super) fn update<R: Real>(
        &mut self,
        (pool, isa): (&Pool, Isa),
        params: &mut [f32],
        gradient: &[R],
        options: &Options,
        t: u64,
    ) {
        let Some(scale) = self.scale else { return };
        let step = Step::new(options, t, scale);
        let kernels = f32::kernels(isa);
        let moments = self.m.chunks_mut(PIECE).zip(self.v.chunks_mut(PIECE));
        let pieces = params.chunks_mut(PIECE).zip(gradient.chunks(PIECE)).zip(moments).map(Mutex::new);
        let pieces: Vec<_> = pieces.collect();
        pool.run(pieces.len(), |i| {
            let mut piece = pieces[i].lock().unwrap_or_else(PoisonError::into_inner);
            let ((params, gradient), (m, v)) = &mut *piece;
            let gradient: Vec<f32> = gradient.iter().map(|g| g.to_f32()).collect();
            kernels.adamw(params, &gradient, m, v, &step);
        });
    }
}

/// What a gradient of norm `norm` is multiplied by; `max` 0 leaves it alone.
fn clip_factor(norm: f64, max: f64) -> f64 {
    if max == 0.0 { 1.0 } else { (max / (norm + 1e-6)).min(1.0) }
}

/// The Euclidean norm, or infinity where it is too large for squares in f32, which is where AdamW's second moment and
/// PyTorch's norm overflow; NaN where any value is.
fn norm<R: Real>(pool: &Pool, gradient: &[R]) -> f64 {
    let pieces: Vec<_> = gradient.chunks(PIECE).map(|piece| (piece, OnceLock::new())).collect();
    pool.run(pieces.len(), |i| {
        let (piece, square) = &pieces[i];
        square.get_or_init(|| squared(piece));
    });
    let square: f64 = pieces.iter().filter_map(|(_, square)| square.get()).sum();
    if square > f64::from(f32::MAX) { f64::INFINITY } else { square.sqrt() }
}

fn squared<R: Real>(piece: &[R]) -> f64 {
    let mut sums = [0f64; 8]; // partial sums in a fixed order: quick, and the same bits every time
    for chunk in piece.chunks(sums.len()) {
        for (sum, g) in sums.iter_mut().zip(chunk) {
            *sum += g.to_f64() * g.to_f64();
        }
    }
    sums.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    const USUAL: Options = Options { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, decay: 0.0 };

    fn pool() -> Arc<Pool> {
        Pool::shared(2).unwrap()
    }

    fn norm(gradient: &[f32]) -> f64 {
        super::norm(&pool(), gradient)
    }

    fn zeros(n: usize) -> Moments {
        Moments::new(vec![0.0; n], vec![0.0; n])
    }

    fn update(moments: &mut Moments, params: &mut [f32], gradient: &[f32], options: &Options, t: u64, clip: f64) {
        moments.measure(&pool(), gradient, clip, true);
        moments.update((&pool(), Isa::best(None)), params, gradient, options, t);
    }

    fn near(got: &[f32], want: &[f64]) {
        assert_eq!(got.len(), want.len());
        for (got, want) in got.iter().zip(want) {
            assert!((f64::from(*got) - want).abs() <= 2e-7 * want.abs().max(1e-12), "{got} against {want}");
        }
    }

    #[test]
    fn the_norm_is_of_all_values_and_shows_what_is_not_finite() {
        assert_eq!(norm(&[3.0, -4.0, 12.0]), 13.0);
        assert_eq!(norm(&[1.0; 100]), 10.0);
        assert_eq!(norm(&[]), 0.0);
        assert!(norm(&[1.0, f32::NAN]).is_nan());
        assert_eq!(norm(&[1.0, f32::NEG_INFINITY]), f64::INFINITY);
        assert_eq!(norm(&[2e19]), f64::INFINITY); // 4e38 is no f32
    }

    /// Literals: torch 2.13, torch.nn.utils.clip_grad_norm_ on [3, -4, 12].
    #[test]
    fn clipping_is_pytorchs() {
        let clipped = |max| [3f32, -4.0, 12.0].map(|g| g * clip_factor(13.0, max) as f32);
        near(&clipped(1.0), &[0.23076921701431274, -0.307692289352417, 0.923076868057251]);
        near(&clipped(13.0), &[2.999999761581421, -3.999999761581421, 11.999999046325684]);
        assert_eq!(clipped(20.0), [3.0, -4.0, 12.0]);
        assert_eq!(clipped(0.0), [3.0, -4.0, 12.0]);
    }

    /// Literals: torch 2.13, torch.optim.AdamW(betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, foreach=False), rates
    /// 0, 1e-2, 5e-3 set before its three steps.
    #[test]
    fn three_updates_are_pytorchs() {
        let options = Options { beta2: 0.95, decay: 0.1, ..USUAL };
        let mut params = [0.5f32, -0.25, 0.0, 1.5, -2.0];
        let mut moments = zeros(5);
        let steps = [
            (0.0, [0.1f32, -0.2, 0.0, 3.0, 1e-5]),
            (1e-2, [0.05, 0.2, 1e-3, -1.0, 2e-5]),
            (5e-3, [-0.3, 0.1, 0.0, 0.5, -1e-5]),
        ];
        for (t, (lr, gradient)) in (1..).zip(steps) {
            update(&mut moments, &mut params, &gradient, &Options { lr, ..options }, t, 0.0);
        }
        near(
            &params,
            &[0.4915647506713867, -0.2514191269874573, -0.010223131626844406, 1.491637945175171, -2.00866961479187],
        );
        near(
            &moments.m,
            &[
                -0.017400000244379044,
                0.011799999512732029,
                9.000000136438757e-5,
                0.203000009059906,
                1.610000026630587e-6,
            ],
        );
        near(
            &moments.v,
            &[
                0.005070000421255827,
                0.0042050001211464405,
                4.750000215381078e-8,
                0.4661250114440918,
                2.8512499652966206e-11,
            ],
        );
    }

    #[test]
    fn rate_zero_moves_the_moments_and_not_the_parameters() {
        let (mut params, mut moments) = ([0.5f32], zeros(1));
        update(&mut moments, &mut params, &[2.0], &Options { lr: 0.0, ..USUAL }, 1, 1.0);
        assert_eq!(params, [0.5]);
        assert!(moments.m[0] != 0.0 && moments.v[0] != 0.0);
    }

    #[test]
    fn many_pieces_are_one_vector() {
        let n = 2 * PIECE + 3;
        let gradient: Vec<f32> = (0..n).map(|i| (i % 7) as f32 - 2.0).collect();
        let want = gradient.iter().map(|&g| f64::from(g) * f64::from(g)).sum::<f64>().sqrt();
        assert!((norm(&gradient) - want).abs() <= 1e-12 * want);
        let (mut params, mut moments) = (vec![1.0; n], zeros(n));
        update(&mut moments, &mut params, &gradient, &USUAL, 1, 1.0);
        for i in (0..n).step_by(101).chain(n - 3..n) {
            let (mut param, mut alone) = ([1.0], Moments { scale: moments.scale, ..zeros(1) });
            alone.update((&pool(), Isa::best(None)), &mut param, &gradient[i..=i], &USUAL, 1);
            assert_eq!([params[i], moments.m[i], moments.v[i]], [param[0], alone.m[0], alone.v[0]], "value {i}");
        }
    }
}
