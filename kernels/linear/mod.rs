//! linear.

use crate::{Elem, Isa};
use std::marker::PhantomData;

pub(crate) struct Forms<E: Elem>(PhantomData<E>);

impl<E: Elem> Forms<E> {
    pub(crate) const fn at(_isa: Isa) -> Self {
        Self(PhantomData)
    }
}
