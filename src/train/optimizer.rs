//! AdamW over an adapter's flat parameters, and clipping by the global norm.
//!
//! Every parameter decays, A and B alike, as PEFT's do under torch.optim.AdamW with one parameter group. Clipping is
//! torch.nn.utils.clip_grad_norm_: factor min(1, max / (norm + 1e-6)). The kernel keeps PyTorch's order of operations.

use super::options::Options;
use crate::model::engine::Engine;
use dialoguellm_kernels::Elem;
use dialoguellm_kernels::adamw::{self, Step};
use std::sync::{Mutex, OnceLock, PoisonError};

/// Values that make one thread's task; fixed, so that the order of the norm's sum is.
const PIECE: usize = 1 << 16;

/// First and second moments, one value a parameter.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Moments {
    pub m: Vec<f32>,
    pub v: Vec<f32>,
}

impl Moments {
    pub fn new(parameters: usize) -> Self {
        Self { m: vec![0.0; parameters], v: vec![0.0; parameters] }
    }

    /// Update number `t`, counted from 1, at rate `lr`, on `engine`'s threads.
    pub fn update(
        &mut self,
        engine: &dyn Engine,
        params: &mut [f32],
        gradient: &[f32],
        t: u64,
        lr: f64,
        norm: f64,
        options: &Options,
    ) {
        let Options { beta1, beta2, epsilon: eps, weight_decay: decay, clip, .. } = *options;
        let scalars = adamw::Options { lr, beta1, beta2, eps, decay };
        let step = Step::new(&scalars, t, clip_factor(norm, clip));
        let kernels = f32::kernels(engine.isa());
        let moments = self.m.chunks_mut(PIECE).zip(self.v.chunks_mut(PIECE));
        let pieces = params.chunks_mut(PIECE).zip(gradient.chunks(PIECE)).zip(moments).map(Mutex::new);
        let pieces: Vec<_> = pieces.collect();
        engine.run(pieces.len(), &|i| {
            let mut piece = pieces[i].lock().unwrap_or_else(PoisonError::into_inner);
            let ((params, gradient), (m, v)) = &mut *piece;
            kernels.adamw(params, gradient, m, v, &step);
        });
    }
}

/// What a gradient of norm `norm` is multiplied by; `max` 0 leaves it alone.
fn clip_factor(norm: f64, max: f64) -> f64 {
    if max == 0.0 { 1.0 } else { (max / (norm + 1e-6)).min(1.0) }
}

/// The Euclidean norm, or infinity where it is too large for squares in f32, which is where AdamW's second moment and
/// PyTorch's norm overflow; NaN where any value is.
pub(crate) fn norm(engine: &dyn Engine, gradient: &[f32]) -> f64 {
    let pieces: Vec<_> = gradient.chunks(PIECE).map(|piece| (piece, OnceLock::new())).collect();
    engine.run(pieces.len(), &|i| {
        let (piece, square) = &pieces[i];
        square.get_or_init(|| squared(piece));
    });
    let square: f64 = pieces.iter().filter_map(|(_, square)| square.get()).sum();
    if square > f64::from(f32::MAX) { f64::INFINITY } else { square.sqrt() }
}

fn squared(piece: &[f32]) -> f64 {
    let mut sums = [0f64; 8]; // partial sums in a fixed order: quick, and the same bits every time
    for chunk in piece.chunks(sums.len()) {
        for (sum, &g) in sums.iter_mut().zip(chunk) {
            *sum += f64::from(g) * f64::from(g);
        }
    }
    sums.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake;

    fn norm(gradient: &[f32]) -> f64 {
        super::norm(fake::model().0.engine(), gradient)
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
        let options = Options { beta2: 0.95, weight_decay: 0.1, clip: 0.0, ..Options::default() };
        let mut params = [0.5f32, -0.25, 0.0, 1.5, -2.0];
        let mut moments = Moments::new(5);
        let steps = [
            (0.0, [0.1f32, -0.2, 0.0, 3.0, 1e-5]),
            (1e-2, [0.05, 0.2, 1e-3, -1.0, 2e-5]),
            (5e-3, [-0.3, 0.1, 0.0, 0.5, -1e-5]),
        ];
        for (t, (lr, gradient)) in (1..).zip(steps) {
            moments.update(fake::model().0.engine(), &mut params, &gradient, t, lr, norm(&gradient), &options);
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
        let (mut params, mut moments) = ([0.5f32], Moments::new(1));
        moments.update(fake::model().0.engine(), &mut params, &[2.0], 1, 0.0, 2.0, &Options::default());
        assert_eq!(params, [0.5]);
        assert!(moments.m[0] != 0.0 && moments.v[0] != 0.0);
    }

    #[test]
    fn many_pieces_are_one_vector() {
        let n = 2 * PIECE + 3;
        let gradient: Vec<f32> = (0..n).map(|i| (i % 7) as f32 - 2.0).collect();
        let want = gradient.iter().map(|&g| f64::from(g) * f64::from(g)).sum::<f64>().sqrt();
        assert!((norm(&gradient) - want).abs() <= 1e-12 * want);
        let (model, _) = fake::model();
        let (mut params, mut moments) = (vec![1.0; n], Moments::new(n));
        moments.update(model.engine(), &mut params, &gradient, 1, 1e-2, want, &Options::default());
        for i in 0..n {
            let (mut param, mut alone) = ([1.0], Moments::new(1));
            alone.update(model.engine(), &mut param, &gradient[i..=i], 1, 1e-2, want, &Options::default());
            assert_eq!([params[i], moments.m[i], moments.v[i]], [param[0], alone.m[0], alone.v[0]], "value {i}");
        }
    }
}
