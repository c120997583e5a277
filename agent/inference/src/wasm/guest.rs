//! What a store carries: what its instances may use, all together.

/// Core instances of one component: `wit-component` makes three or four.
const INSTANCES_MAX: usize = 16;
/// Memories of one component; together they may take what the step may.
const MEMORIES_MAX: usize = 4;
/// Tables of one component.
const TABLES_MAX: usize = 16;
/// Elements of one table: each is a pointer of the host's memory, which the limit on linear memory does not see.
const TABLE_ELEMENTS_MAX: usize = 20_000;

/// What the instances of a store have, and whether they wanted more.
pub(super) struct Guest {
    memory_limit_bytes: usize,
    memory_bytes: usize,
    memory_refused: bool,
}

impl Guest {
    pub(super) fn new(memory_limit_bytes: usize) -> Guest {
        Guest {
            memory_limit_bytes,
            memory_bytes: 0,
            memory_refused: false,
        }
    }

    /// Forgets refusals: a call begins.
    pub(super) fn call_begins(&mut self) {
        self.memory_refused = false;
    }

    /// True when the limit was hit since the call began.
    pub(super) fn memory_refused(&self) -> bool {
        self.memory_refused
    }
}

impl wasmtime::ResourceLimiter for Guest {
    fn memory_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        // Over all memories: a limit on each would multiply by their number.
        let total = self.memory_bytes.saturating_add(desired.saturating_sub(current));
        let granted = total <= self.memory_limit_bytes;
        if granted {
            self.memory_bytes = total;
        }
        self.memory_refused |= !granted;
        Ok(granted)
    }

    fn table_growing(&mut self, _current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        Ok(desired <= TABLE_ELEMENTS_MAX && maximum.is_none_or(|maximum| desired <= maximum))
    }

    fn instances(&self) -> usize {
        INSTANCES_MAX
    }

    fn memories(&self) -> usize {
        MEMORIES_MAX
    }

    fn tables(&self) -> usize {
        TABLES_MAX
    }
}
