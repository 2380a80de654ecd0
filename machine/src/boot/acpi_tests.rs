//! The tables are whole and, where the reference compiler is installed, take it back apart.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::acpi::{self, PlacedTable};
use super::testing::ram;
use super::*;

fn tables(cpus: u32, slots: u32) -> Result<Vec<PlacedTable>, BootError> {
    let slots: Vec<MmioSlot> = (0..slots)
        .map(|i| MmioSlot {
            base: 0xd000_0000 + u64::from(i) * 0x1000,
            len: 0x1000,
            gsi: 16 + i % 8,
        })
        .collect();
    let kernel = KernelSource::Embedded(&[]);
    acpi::tables(&BootPlan {
        kernel: &kernel,
        initrd: None,
        cmdline: "",
        cpus,
        ram: &ram(4),
        mmio_slots: &slots,
        generation_id: [0; 16],
    })
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

#[test]
fn tables_are_whole_and_found_from_the_rsdp() {
    let tables = tables(16, 17).unwrap();
    let at = |address: u64| tables.iter().find(|t| t.address == address).unwrap();
    let u64_at =
        |bytes: &[u8], at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    let rsdp = &at(layout::RSDP).bytes;
    assert_eq!((sum(&rsdp[..20]), sum(rsdp)), (0, 0));
    let xsdt = &at(u64_at(rsdp, 24)).bytes;
    let mut signatures = vec![xsdt[..4].to_vec()];
    assert_eq!(xsdt.len(), 36 + 2 * 8);
    for entry in [36, 44] {
        let table = &at(u64_at(xsdt, entry)).bytes;
        signatures.push(table[..4].to_vec());
        if table.starts_with(b"FACP") {
            signatures.push(at(u64_at(table, 140)).bytes[..4].to_vec());
        }
    }
    assert_eq!(signatures, [b"XSDT", b"FACP", b"DSDT", b"APIC"]);
    for table in tables.iter().filter(|t| t.address != layout::RSDP) {
        assert_eq!(sum(&table.bytes), 0, "{}", table.what);
        let len = u32::from_le_bytes(table.bytes[4..8].try_into().unwrap());
        assert_eq!(len as usize, table.bytes.len(), "{}", table.what);
    }
}

#[test]
fn largest_machine_has_room_and_no_more() {
    assert!(tables(MAX_CPUS, 64).is_ok());
    assert!(matches!(
        tables(1, 4000),
        Err(BootError::AcpiTooLarge { .. })
    ));
}

#[test]
fn reference_disassembler_reads_the_tables() {
    let folder = tempfile::tempdir().unwrap();
    for table in tables(2, 3).unwrap() {
        if table.address == layout::RSDP {
            continue;
        }
        let name = table.what.trim_start_matches("the ").to_lowercase();
        let file = folder.path().join(format!("{name}.aml"));
        fs::write(&file, &table.bytes).unwrap();
        let output = match Command::new("iasl").arg("-d").arg(&file).output() {
            Ok(output) => output,
            Err(error) => {
                println!("skipped: iasl (package acpica-tools) cannot be run: {error}");
                return;
            }
        };
        let said = String::from_utf8_lossy(&output.stderr).into_owned()
            + &String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{name}: {said}");
        for bad in ["Invalid", "Incorrect", "Could not", "rror"] {
            assert!(!said.contains(bad), "{name}: {said}");
        }
        let source = fs::read_to_string(file.with_extension("dsl")).unwrap();
        for bad in ["Incorrect", "should be", "Invalid"] {
            assert!(!source.contains(bad), "{name}: {source}");
        }
        if name == "dsdt" {
            for part in [
                "LNRO0005",
                "ACPI0013",
                "PNP0C0C",
                "VMGENCTR",
                "Notify (PWRB, 0x80)",
            ] {
                assert!(source.contains(part), "{part} is not in {source}");
            }
            recompile(&file.with_extension("dsl"));
        }
    }
}

/// What was disassembled compiles again without an error.
fn recompile(source: &Path) {
    let output = Command::new("iasl")
        .arg("-vi")
        .arg(source)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned()
        + &String::from_utf8_lossy(&output.stdout);
    let text = fs::read_to_string(source).unwrap();
    assert!(output.status.success(), "{said}\n{text}");
}
