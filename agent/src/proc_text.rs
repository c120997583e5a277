//! What the kernel says in `/proc`, as text.

/// The number of a line like `MemAvailable:    123 kB`.
pub(crate) fn kib(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_found_by_their_whole_name() {
        let text = "MemTotal:  100 kB\nMemAvailable:   42 kB\n";
        assert_eq!(kib(text, "MemAvailable:"), Some(42));
        assert_eq!(kib(text, "VmRSS:"), None);
    }
}
