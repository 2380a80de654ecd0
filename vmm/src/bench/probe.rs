//! What the probe guest says on its serial port: lines `PROBE kind key=value ...`.

/// The mark of the first line that the guest prints.
pub(super) const FIRST_LINE: &str = "PROBE hello";

/// One complete line of the probe guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ProbeLine<'a> {
    kind: &'a str,
    fields: &'a str,
}

impl<'a> ProbeLine<'a> {
    /// Reads a line; `None` when it is not a whole one of the guest.
    pub fn parse(line: &'a str) -> Option<Self> {
        let line = line.trim_end().strip_prefix("PROBE ")?;
        let (kind, fields) = line.split_once(' ').unwrap_or((line, ""));
        Some(Self { kind, fields })
    }

    /// All whole lines of `kind` in what was printed. A last line without its end is not whole:
    /// the guest may be about to print the rest.
    pub fn all(printed: &'a str, kind: &'a str) -> impl Iterator<Item = Self> {
        let whole = printed.rfind('\n').map_or("", |end| &printed[..end]);
        whole
            .lines()
            .filter_map(Self::parse)
            .filter(move |line| line.kind == kind)
    }

    /// The value of a field that holds a number.
    pub fn number(&self, key: &str) -> Option<u64> {
        let fields = self.fields.split_ascii_whitespace();
        fields
            .filter_map(|field| field.split_once('='))
            .find(|(k, _)| *k == key)?
            .1
            .parse()
            .ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRINTED: &str = "us=17 max_gap_us=9000 faults=0\r\n\
        PROBE ready version=1 cpus=1 ram_mib=128\r\n\
        PROBE tick n=3 up_ms=300 gap_us=250 max_gap_us=7100 faults=0\r\n\
        something else\r\n\
        PROBE tick n=4 up_ms=400 gap_us=90 max_gap_us=7100 faults=0\r\n\
        PROBE tick n=5 up_ms=500 gap_us=9";

    #[test]
    fn only_whole_lines_of_the_guest_count() {
        let ticks: Vec<_> = ProbeLine::all(PRINTED, "tick").collect();
        let numbers: Vec<_> = ticks.iter().map(|tick| tick.number("n").unwrap()).collect();
        assert_eq!(numbers, [3, 4]);
        assert_eq!(ticks[0].number("max_gap_us"), Some(7100));
        assert_eq!(ticks[0].number("gap_us"), Some(250));
        assert_eq!(ticks[0].number("us"), None);
        assert_eq!(ProbeLine::all(PRINTED, "ready").count(), 1);
        assert_eq!(ProbeLine::all("", "tick").count(), 0);
        assert_eq!(ProbeLine::all("PROBE tick n=1", "tick").count(), 0);
    }
}
