//! What training changes, on one device.

use super::Adapter;
use super::engine::{Learner, Moments};
use crate::device::Device;
use crate::{Error, Result};
use dialoguellm_kernels::adamw;
use std::any::Any;
use std::sync::Arc;

/// Parameters, moments and gradient.
pub(crate) struct Learned<D: Device> {
    params: D::Params,
    moments: D::Moments,
    /// `[1, parameters]`; none before the first step.
    gradient: Option<D::Real>,
    len: usize,
    device: Arc<D>,
}

impl<D: Device> Learned<D> {
    pub fn new(device: &Arc<D>, adapter: &Adapter, moments: Option<&Moments>) -> Result<Self> {
        device.turn(|| {
            let len = adapter.params().len();
            let params = device.own_params(adapter.shared_params());
            let moments = device.moments(len, moments.map(|Moments { m, v }| (&**m, &**v)))?;
            device.status()?;
            Ok(Self { params, moments, gradient: None, len, device: device.clone() })
        })
    }

    /// The parameters beside the gradient of the step that has begun, of a learner on `device`.
    pub fn step<'a>(learner: &'a mut dyn Learner, device: &Arc<D>) -> Result<(D::Params, &'a mut D::Real)> {
        let learner = learner.as_any().downcast_mut::<Self>().filter(|learner| Arc::ptr_eq(&learner.device, device));
        let learner = learner.ok_or_else(|| Error::invalid("the learner was made by another engine"))?;
        let gradient = learner.gradient.as_mut().ok_or_else(idle)?;
        Ok((learner.params.clone(), gradient))
    }
}

fn idle() -> Error {
    Error::invalid("the learner has begun no step")
}

impl<D: Device> Learner for Learned<D> {
    fn begin(&mut self) -> Result<()> {
        self.gradient = None; // its memory is free before the new one's is taken
        let zeros = self.device.turn(|| {
            let zeros = self.device.zeros(1, self.len);
            self.device.status().map(|()| zeros)
        })?;
        self.gradient = Some(zeros);
        Ok(())
    }

    fn norm(&mut self, clip: f64, finite: bool) -> Result<f64> {
        let gradient = self.gradient.as_ref().ok_or_else(idle)?;
        self.device.turn(|| self.device.gradient_norm(&mut self.moments, gradient, clip, finite))
    }

    fn update(&mut self, options: &adamw::Options, t: u64) -> Result<()> {
        let gradient = self.gradient.as_ref().ok_or_else(idle)?;
        self.device.turn(|| self.device.adamw(&mut self.params, &mut self.moments, gradient, options, t))
    }

    fn gradient(&self) -> Result<Vec<f32>> {
        let gradient = self.gradient.as_ref().ok_or_else(idle)?;
        self.device.turn(|| self.device.read(gradient))
    }

    fn values(&self) -> Result<Arc<Vec<f32>>> {
        self.device.turn(|| self.device.values(&self.params))
    }

    fn moments(&self) -> Result<Moments<'_>> {
        let [m, v] = self.device.turn(|| self.device.read_moments(&self.moments))?;
        Ok(Moments { m, v })
    }

    fn as_any(&mut self) -> &mut dyn Any {
        self
    }
}
