//! The DSDT: processors, COM1, RTC, virtio-mmio devices, events, generation id and power-off.

use acpi_tables::Aml;
use acpi_tables::aml::{
    And, Device, EISAName, Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, IO,
    If, Interrupt, Local, Memory32Fixed, Method, Name, Notify, OpRegion, OpRegionSpace, Package,
    Path, ResourceTemplate, Scope, Store, ZERO,
};
use acpi_tables::sdt::Sdt;

use super::board::{
    EVENT_GENERATION_ID, EVENT_GSI, EVENT_PORT, EVENT_POWER_BUTTON, OEM, OEM_REVISION, OEM_TABLE,
    SLEEP_TYPE_OFF,
};
use super::error::BootError;
use super::{BootPlan, MmioSlot, layout};

/// What `Notify` says of a pressed button and of a changed generation id.
const NOTIFY_CHANGED: u8 = 0x80;

/// The whole table with its header.
pub(super) fn build(plan: &BootPlan<'_>) -> Result<Vec<u8>, BootError> {
    let mut devices = processors(plan.cpus);
    devices.extend(com1());
    devices.extend(rtc());
    for (index, slot) in plan.mmio_slots.iter().enumerate() {
        devices.extend(virtio(index, slot)?);
    }
    devices.extend(power_button());
    devices.extend(generation_id());
    devices.extend(events());
    let mut body = Scope::raw(Path::new("\\_SB_"), devices);
    // The values behind the first are for a second sleep register, of which there is none.
    aml(
        &Name::new(
            Path::new("_S5_"),
            &Package::new(vec![&SLEEP_TYPE_OFF, &ZERO, &ZERO, &ZERO]),
        ),
        &mut body,
    );
    let mut table = Sdt::new(*b"DSDT", 36, 6, OEM, OEM_TABLE, OEM_REVISION);
    table.append_slice(&body);
    Ok(table.as_slice().to_vec())
}

fn aml(item: &dyn Aml, bytes: &mut Vec<u8>) {
    item.to_aml_bytes(bytes);
}

fn device(name: &str, children: Vec<&dyn Aml>) -> Vec<u8> {
    let mut bytes = Vec::new();
    aml(&Device::new(Path::new(name), children), &mut bytes);
    bytes
}

/// An edge-triggered, active-high interrupt of its own.
fn interrupt(gsi: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, gsi)
}

fn processors(cpus: u32) -> Vec<u8> {
    (0..cpus)
        .flat_map(|id| {
            device(
                &format!("C{id:03X}"),
                vec![
                    &Name::new(Path::new("_HID"), &"ACPI0007"),
                    &Name::new(Path::new("_UID"), &id),
                ],
            )
        })
        .collect()
}

fn com1() -> Vec<u8> {
    device(
        "COM1",
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0501")),
            &Name::new(Path::new("_UID"), &ZERO),
            &Name::new(
                Path::new("_CRS"),
                &ResourceTemplate::new(vec![&IO::new(0x3f8, 0x3f8, 1, 8), &interrupt(4)]),
            ),
        ],
    )
}

fn rtc() -> Vec<u8> {
    device(
        "RTC_",
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0B00")),
            &Name::new(
                Path::new("_CRS"),
                &ResourceTemplate::new(vec![&IO::new(0x70, 0x70, 1, 2), &interrupt(8)]),
            ),
        ],
    )
}

fn virtio(index: usize, slot: &MmioSlot) -> Result<Vec<u8>, BootError> {
    let refused = || BootError::MmioSlot {
        base: slot.base,
        len: slot.len,
    };
    let end = slot.base.checked_add(slot.len).ok_or_else(refused)?;
    if slot.len == 0 || slot.base < layout::HOLE_START || end > u64::from(layout::IOAPIC) {
        return Err(refused());
    }
    let base = u32::try_from(slot.base).map_err(|_| refused())?;
    let len = u32::try_from(slot.len).map_err(|_| refused())?;
    Ok(device(
        &format!("V{:03X}", index & 0xfff),
        vec![
            &Name::new(Path::new("_HID"), &"LNRO0005"),
            &Name::new(Path::new("_UID"), &index),
            &Name::new(
                Path::new("_CRS"),
                &ResourceTemplate::new(vec![
                    &Memory32Fixed::new(true, base, len),
                    &interrupt(slot.gsi),
                ]),
            ),
        ],
    ))
}

fn power_button() -> Vec<u8> {
    device(
        "PWRB",
        vec![&Name::new(Path::new("_HID"), &EISAName::new("PNP0C0C"))],
    )
}

/// Source: "Virtual Machine Generation ID", Microsoft, 2012; the shorter compatible id is the one
/// that fits ACPI's limit.
fn generation_id() -> Vec<u8> {
    let low = u32::try_from(layout::GENERATION_ID & 0xffff_ffff).unwrap_or(0);
    let high = u32::try_from(layout::GENERATION_ID >> 32).unwrap_or(0);
    device(
        "VGEN",
        vec![
            &Name::new(Path::new("_HID"), &"VMMG0001"),
            &Name::new(
                Path::new("_CID"),
                &Package::new(vec![&"VMGENCTR", &"VM_Gen_Counter"]),
            ),
            &Name::new(Path::new("_DDN"), &"VM_Gen_Counter"),
            &Name::new(Path::new("ADDR"), &Package::new(vec![&low, &high])),
        ],
    )
}

/// The generic event device: reads the pending events, which clears them, and passes them on.
fn events() -> Vec<u8> {
    let pending = Local(0);

    device(
        "GED_",
        vec![
            &Name::new(Path::new("_HID"), &"ACPI0013"),
            &Name::new(Path::new("_UID"), &ZERO),
            &Name::new(
                Path::new("_CRS"),
                &ResourceTemplate::new(vec![&interrupt(EVENT_GSI)]),
            ),
            &OpRegion::new(
                Path::new("EREG"),
                OpRegionSpace::SystemIO,
                &EVENT_PORT,
                &1_u8,
            ),
            &Field::new(
                Path::new("EREG"),
                FieldAccessType::Byte,
                FieldLockRule::NoLock,
                FieldUpdateRule::WriteAsZeroes,
                vec![FieldEntry::Named(*b"ESEL", 8)],
            ),
            &Method::new(
                Path::new("_EVT"),
                1,
                true,
                vec![
                    &Store::new(&pending, &Path::new("ESEL")),
                    &If::new(
                        &And::new(&ZERO, &pending, &EVENT_POWER_BUTTON),
                        vec![&Notify::new(&Path::new("PWRB"), &NOTIFY_CHANGED)],
                    ),
                    &If::new(
                        &And::new(&ZERO, &pending, &EVENT_GENERATION_ID),
                        vec![&Notify::new(&Path::new("VGEN"), &NOTIFY_CHANGED)],
                    ),
                ],
            ),
        ],
    )
}
