//! One history: steps, the kernel's answers, the model's answers.

mod steps;
mod world;

pub use steps::strategy;
pub use world::history;
