//! Lines of the probe guest's disk loads.

use super::fields::{Fields, ProbeLineError};

/// A disk load is set up: all that says what each of its changes writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskReady {
    /// The load, counted from 0 on the command line.
    pub disk: u64,
    /// Serial number of the disk; `-` when it has none.
    pub serial: String,
    /// Number of the disk in its units.
    pub id: u64,
    /// What its units and places are made of.
    pub seed: u64,
    /// One boot of the guest.
    pub run: u64,
    /// First sector of the region, 512 bytes each.
    pub sector: u64,
    /// Bytes of a unit.
    pub unit: u64,
    /// Units of the region.
    pub units: u64,
    /// Units of each write that fills the region first; 0 when it is not filled.
    pub fill: u64,
    /// `random` or `sequential`.
    pub pattern: String,
    /// Sizes of requests in units.
    pub sizes: Vec<u64>,
    /// Per cent of requests that write.
    pub writes: u64,
    /// Per cent of requests that discard.
    pub discards: u64,
    /// Per cent of requests that write zeroes.
    pub zeroes: u64,
    /// Per cent of requests that read where the pattern says.
    pub reads: u64,
    /// Per cent of requests that read one part after the other.
    pub verifies: u64,
    /// Requests in flight at most.
    pub depth: u64,
    /// The CPU that makes them.
    pub cpu: u64,
}

/// What a disk load has done since boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskCounts {
    /// The load.
    pub disk: u64,
    /// Whether it has ended.
    pub end: bool,
    /// The newest change of the disk.
    pub submitted: u64,
    /// All changes up to this one are acknowledged.
    pub acked: u64,
    /// All changes up to this one are flushed.
    pub flushed: u64,
    /// Requests in flight.
    pub in_flight: u64,
    /// Units read.
    pub units_read: u64,
    /// Units whose write was acknowledged.
    pub units_written: u64,
    /// Units read and compared with what must be there.
    pub units_verified: u64,
    /// Requests that the device failed, each as often as it did.
    pub errors: u64,
    /// Units that were wrong.
    pub faults: u64,
    /// Looks at the whole region.
    pub passes: u64,
}

/// How long requests of one kind took.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskStats {
    /// The load.
    pub disk: u64,
    /// `interval` or `total`.
    pub span: String,
    /// `read`, `write`, `flush`, `discard` or `zeroes`.
    pub op: String,
    /// Milliseconds of the span.
    pub ms: u64,
    /// Requests.
    pub count: u64,
    /// Requests a second.
    pub iops: u64,
    /// Bytes a second.
    pub bytes_s: u64,
    /// Half of all took no longer.
    pub p50_ns: u64,
    /// 99 of 100 took no longer.
    pub p99_ns: u64,
    /// 999 of 1000 took no longer.
    pub p999_ns: u64,
    /// The longest.
    pub max_ns: u64,
}

/// A look at the whole region of a disk load is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskVerified {
    /// The load.
    pub disk: u64,
    /// Counted from 1.
    pub pass: u64,
    /// Units that were read.
    pub units: u64,
    /// Of these, those that are all zero.
    pub blank: u64,
    /// Those of which nothing was known.
    pub unknown: u64,
    /// Those that were wrong.
    pub faults: u64,
    /// The newest change of the disk.
    pub sequence: u64,
}

impl DiskReady {
    pub(super) fn of(fields: &Fields<'_>) -> Result<Self, ProbeLineError> {
        let sizes = fields.text("sizes")?;
        let read = sizes.split('/').map(str::parse).collect();
        let Ok(read) = read else {
            return Err(ProbeLineError::Number {
                key: "sizes",
                value: sizes,
            });
        };
        Ok(Self {
            disk: fields.number("disk")?,
            serial: fields.text("serial")?,
            id: fields.number("id")?,
            seed: fields.number("seed")?,
            run: fields.number("run")?,
            sector: fields.number("sector")?,
            unit: fields.number("unit")?,
            units: fields.number("units")?,
            fill: fields.number("fill")?,
            pattern: fields.text("pattern")?,
            sizes: read,
            writes: fields.number("writes")?,
            discards: fields.number("discards")?,
            zeroes: fields.number("zeroes")?,
            reads: fields.number("reads")?,
            verifies: fields.number("verifies")?,
            depth: fields.number("depth")?,
            cpu: fields.number("cpu")?,
        })
    }
}

impl DiskCounts {
    pub(super) fn of(fields: &Fields<'_>) -> Result<Self, ProbeLineError> {
        Ok(Self {
            disk: fields.number("disk")?,
            end: fields.number("end")? != 0,
            submitted: fields.number("submitted")?,
            acked: fields.number("acked")?,
            flushed: fields.number("flushed")?,
            in_flight: fields.number("in_flight")?,
            units_read: fields.number("units_read")?,
            units_written: fields.number("units_written")?,
            units_verified: fields.number("units_verified")?,
            errors: fields.number("errors")?,
            faults: fields.number("faults")?,
            passes: fields.number("passes")?,
        })
    }
}

impl DiskStats {
    pub(super) fn of(fields: &Fields<'_>) -> Result<Self, ProbeLineError> {
        Ok(Self {
            disk: fields.number("disk")?,
            span: fields.text("span")?,
            op: fields.text("op")?,
            ms: fields.number("ms")?,
            count: fields.number("count")?,
            iops: fields.number("iops")?,
            bytes_s: fields.number("bytes_s")?,
            p50_ns: fields.number("p50_ns")?,
            p99_ns: fields.number("p99_ns")?,
            p999_ns: fields.number("p999_ns")?,
            max_ns: fields.number("max_ns")?,
        })
    }
}

impl DiskVerified {
    pub(super) fn of(fields: &Fields<'_>) -> Result<Self, ProbeLineError> {
        Ok(Self {
            disk: fields.number("disk")?,
            pass: fields.number("pass")?,
            units: fields.number("units")?,
            blank: fields.number("blank")?,
            unknown: fields.number("unknown")?,
            faults: fields.number("faults")?,
            sequence: fields.number("sequence")?,
        })
    }
}
