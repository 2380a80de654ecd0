//! The ACPI tables: RSDP, XSDT, FADT and MADT; `dsdt` has the devices.
//!
//! The machine is hardware-reduced: no SCI, no PM timer, no fixed events. Reset, power-off and the
//! power button are ports of their own. Source: ACPI 6.5, chapters 5.2 and 4.1.

use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink, aml_as_bytes};
use migration::GuestRam;
use zerocopy::{Immutable, IntoBytes};

pub use super::board::{
    EVENT_GENERATION_ID, EVENT_GSI, EVENT_PORT, EVENT_POWER_BUTTON, RESET_AND_SLEEP_PORT,
    RESET_VALUE, SLEEP_TYPE_OFF,
};
use super::board::{OEM, OEM_REVISION, OEM_TABLE};
use super::error::BootError;
use super::image::write;
use super::plan::BootPlan;
use super::{dsdt, layout};

/// Of the IA-PC boot architecture flags: COM1 is there, VGA is not. The bits for an 8042 and for a
/// missing RTC stay clear: guests need not probe a keyboard, and there is a CMOS RTC.
const LEGACY_DEVICES: u16 = 1 << 0;
const VGA_NOT_PRESENT: u16 = 1 << 2;

/// Interrupts of ISA devices that a guest may use before it has read the DSDT.
const ISA_INTERRUPTS: [u8; 2] = [4, 8];

/// An ISA interrupt that is wired to an IOAPIC pin (ACPI 6.5, 5.2.12.5).
#[repr(C, packed)]
#[derive(Clone, Copy, IntoBytes, Immutable)]
struct SourceOverride {
    kind: u8,
    length: u8,
    bus: u8,
    source: u8,
    gsi: [u8; 4],
    flags: [u8; 2],
}
aml_as_bytes!(SourceOverride);

impl SourceOverride {
    const ACTIVE_HIGH_EDGE: u16 = 0b0101;

    fn identity(source: u8) -> Self {
        Self {
            kind: 2,
            length: 10,
            bus: 0,
            source,
            gsi: u32::from(source).to_le_bytes(),
            flags: Self::ACTIVE_HIGH_EDGE.to_le_bytes(),
        }
    }
}

/// A table with the address where it goes.
pub(super) struct PlacedTable {
    pub(super) what: &'static str,
    pub(super) address: u64,
    pub(super) bytes: Vec<u8>,
}

/// Writes all tables and the generation id into the reserved part of low RAM.
pub(super) fn write_tables(plan: &BootPlan<'_>, ram: &GuestRam) -> Result<(), BootError> {
    for table in tables(plan)? {
        write(ram, table.what, table.address, &table.bytes)?;
    }
    write(
        ram,
        "the generation id",
        layout::GENERATION_ID,
        &plan.generation_id,
    )
}

/// All tables, placed one behind the other.
pub(super) fn tables(plan: &BootPlan<'_>) -> Result<Vec<PlacedTable>, BootError> {
    let rsdp_len = Rsdp::len() as u64;
    let mut next = (layout::RSDP + rsdp_len).next_multiple_of(64);
    let mut placed = Vec::new();
    let mut place = |what, bytes: Vec<u8>| {
        let address = next;
        next = (next + bytes.len() as u64).next_multiple_of(64);
        placed.push(PlacedTable {
            what,
            address,
            bytes,
        });
        address
    };
    let dsdt = place("the DSDT", dsdt::build(plan)?);
    let fadt = place("the FADT", bytes_of(&fadt(dsdt)));
    let madt = place("the MADT", bytes_of(&madt(plan.cpus)));
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = place("the XSDT", bytes_of(&xsdt));
    if next > layout::ACPI_END {
        return Err(BootError::AcpiTooLarge {
            len: usize::try_from(next - layout::RSDP).unwrap_or(usize::MAX),
            max: usize::try_from(layout::ACPI_END - layout::RSDP).unwrap_or(usize::MAX),
        });
    }
    placed.push(PlacedTable {
        what: "the RSDP",
        address: layout::RSDP,
        bytes: bytes_of(&Rsdp::new(OEM, xsdt)),
    });
    Ok(placed)
}

fn fadt(dsdt: u64) -> impl Aml {
    let port = |address: u16| {
        GAS::new(
            AddressSpace::SystemIo,
            8,
            0,
            AccessSize::ByteAccess,
            address.into(),
        )
    };
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .dsdt_64(dsdt)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Wbinvd)
        .flag(Flags::Headless)
        // Power and sleep button are no fixed events; the power button is a device.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    fadt.iapc_boot_arch = (LEGACY_DEVICES | VGA_NOT_PRESENT).into();
    fadt.reset_reg = port(RESET_AND_SLEEP_PORT);
    fadt.reset_value = RESET_VALUE;
    fadt.sleep_control_reg = port(RESET_AND_SLEEP_PORT);
    fadt.sleep_status_reg = port(RESET_AND_SLEEP_PORT);
    fadt.hypervisor_vendor_identity = u64::from_le_bytes(*b"VMM\0\0\0\0\0").into();
    fadt.finalize()
}

fn madt(cpus: u32) -> MADT {
    let mut madt = MADT::new(
        OEM,
        OEM_TABLE,
        OEM_REVISION,
        LocalInterruptController::Address(layout::LOCAL_APIC),
    );
    // `load` has checked that ids fit into a byte.
    for id in 0..u8::try_from(cpus).unwrap_or(u8::MAX) {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, layout::IOAPIC, 0));
    for source in ISA_INTERRUPTS {
        madt.add_structure(SourceOverride::identity(source));
    }
    madt
}

fn bytes_of(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}
