//! What integration tests share.
#![allow(dead_code, unreachable_pub)] // each test binary uses its own part

pub mod golden;
pub mod plain;
pub mod random;
