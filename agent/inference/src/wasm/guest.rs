//! What a store carries: the limits of its instance.

use wasmtime::StoreLimits;

/// What a store carries: the limits of its instance, and whether they were hit.
pub(super) struct Guest {
    pub(super) limits: StoreLimits,
    pub(super) memory_refused: bool,
}

impl wasmtime::ResourceLimiter for Guest {
    fn memory_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        let granted = self.limits.memory_growing(current, desired, maximum)?;
        self.memory_refused |= !granted;
        Ok(granted)
    }

    fn table_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        self.limits.table_growing(current, desired, maximum)
    }
}
