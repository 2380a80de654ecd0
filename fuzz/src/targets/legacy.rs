//! Serial port, real-time clock, keyboard controller and ACPI registers, as a guest drives them.

use std::io;
use std::sync::Arc;

use devices::power::{AcpiPower, I8042, PowerControl};
use devices::rtc::Rtc;
use devices::serial::Serial;
use devices::{BusDevice, EventFdInterrupt, Interrupt};

use super::seeds::no_seeds;
use crate::{Input, Memory, Target};

/// Port reads and writes.
pub(super) const LEGACY: Target = Target {
    name: "legacy",
    run,
    seeds: no_seeds,
    words: &[],
    longest: 512,
    memory: Memory {
        base: 4 << 20,
        per_byte: 256,
    },
};

/// A machine that does not mind.
pub(super) struct Deaf;

impl PowerControl for Deaf {
    fn reset(&self) {}
    fn power_off(&self) {}
}

/// The devices of a machine that are no virtio devices.
pub(super) struct Devices {
    pub serial: Serial,
    pub rtc: Rtc,
    pub i8042: I8042,
    pub acpi: AcpiPower,
}

impl Devices {
    pub fn new() -> Self {
        let line = || -> Arc<dyn Interrupt> {
            Arc::new(EventFdInterrupt::new().expect("an event descriptor"))
        };
        Self {
            serial: Serial::new(line(), Box::new(io::sink())).expect("a serial port"),
            rtc: Rtc::new(line()).expect("a clock"),
            i8042: I8042::new(Arc::new(Deaf)),
            acpi: AcpiPower::new(Arc::new(Deaf), line()),
        }
    }

    pub fn port(&self, which: u8) -> &dyn BusDevice {
        match which % 4 {
            0 => &self.serial,
            1 => &self.rtc,
            2 => &self.i8042,
            _ => &self.acpi,
        }
    }

    /// Another process goes on with them: what was saved is loaded, and is saved as the same again.
    fn moved(&self) -> Self {
        let next = Self::new();
        let (serial, i8042, acpi) = (self.serial.save(), self.i8042.save(), self.acpi.save());
        assert!(next.serial.load(serial.clone()).is_ok(), "{serial:?}");
        assert!(next.i8042.load(i8042.clone()).is_ok(), "{i8042:?}");
        assert!(next.acpi.load(acpi.clone()).is_ok(), "{acpi:?}");
        assert_eq!((next.serial.save(), next.i8042.save()), (serial, i8042));
        assert_eq!(next.acpi.save(), acpi);
        // Its registers follow the time.
        let rtc = self.rtc.save();
        assert!(next.rtc.load(rtc.clone()).is_ok(), "{rtc:?}");
        let _ = (next.serial.resume(), next.rtc.resume(), next.acpi.resume());
        next
    }
}

fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut devices = Devices::new();
    let mut moves = 0;
    while !input.is_empty() {
        match input.u8() % 8 {
            0..=2 => {
                let (which, offset, len) = (input.u8(), input.u8() % 16, input.u8() % 9);
                let data = input.bytes(usize::from(len));
                devices.port(which).write(offset.into(), data);
            }
            3 | 4 => {
                let (which, offset, len) = (input.u8(), input.u8() % 16, input.u8() % 9);
                let mut data = [0; 8];
                devices
                    .port(which)
                    .read(offset.into(), &mut data[..usize::from(len)]);
            }
            5 => {
                let len = usize::from(input.u8());
                devices.serial.enqueue_input(input.bytes(len));
            }
            6 => {
                let _ = devices.acpi.press_power_button();
            }
            _ if moves < 4 => {
                moves += 1;
                devices = devices.moved();
            }
            _ => {}
        }
    }
}
