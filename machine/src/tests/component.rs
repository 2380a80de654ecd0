//! Components of every kind and version that was ever released must still be read, and mean the same.
//!
//! `tests/goldens/component-KIND-vN.bin` is the body of one, made by hand. A new version of a kind adds a
//! file; those of released ones are never written again. With `VMM_WRITE_GOLDEN` set to a folder, all are
//! written there.

use std::fmt::Debug;
use std::path::{Path, PathBuf};

use devices::power::{AcpiPowerStateV1, I8042StateV1};
use devices::rtc::RtcStateV1;
use devices::serial::SerialStateV1;
use devices::virtio::block::BlockStateV1;
use devices::virtio::console::ConsoleStateV1;
use devices::virtio::net::NetStateV1;
use devices::virtio::net::filter::{FilterV1, TableV1};
use devices::virtio::rng::RngStateV1;
use devices::virtio::{MmioStateV1, MmioStateV2, QueueStateV1};

use crate::clock::ClockStateV1;
use crate::snapshot::component::Component;
use crate::state::v1;
use crate::state::{IrqchipsStateV1, PitStateV1, RunStateV1};
use crate::vcpu::state::VcpuStateV1;

/// Goldens that were looked at, by file name.
#[derive(Default)]
struct Looked(Vec<String>);

impl Looked {
    /// Compares `state` with the golden of its kind and `version`.
    fn at<T: Component + PartialEq + Debug>(&mut self, version: u32, state: &T) {
        let kind = T::KIND;
        assert!(T::VERSIONS.contains(version), "{kind} version {version}");
        let body = state.write(version).unwrap();
        let name = format!("component-{kind}-v{version}.bin");
        if let Some(folder) = std::env::var_os("VMM_WRITE_GOLDEN") {
            std::fs::write(Path::new(&folder).join(&name), &body).unwrap();
            return;
        }
        let golden = std::fs::read(goldens().join(&name)).unwrap();
        assert_eq!(&T::read(version, &golden).unwrap(), state, "{name}");
        assert_eq!(body, golden, "{name} is written differently");
        self.0.push(name);
    }
}

fn goldens() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens")
}

#[test]
fn every_component_is_read_and_written_as_ever() {
    let mut looked = Looked::default();
    looked.at(1, &RunStateV1::Paused);
    looked.at(
        1,
        &ClockStateV1 {
            kvmclock_ns: 5_000_000_007,
            realtime_ns: Some(1_795_225_000_000_000_001),
            host_tsc: None,
        },
    );
    looked.at(
        1,
        &IrqchipsStateV1(vec![vec![1, 2], vec![3], vec![4, 5, 6]]),
    );
    looked.at(1, &PitStateV1(vec![7, 8, 9]));
    looked.at(
        1,
        &VcpuStateV1 {
            mp_state: vec![0],
            regs: vec![1, 2],
            sregs: vec![3],
            xcrs: vec![4],
            xsave: vec![5; 20],
            debugregs: vec![6],
            lapic: vec![7, 7],
            msrs: vec![(0x174, 8), (0xc000_0080, u64::MAX)],
            events: vec![9],
            tsc_offset: Some(10),
        },
    );
    looked.at(
        1,
        &SerialStateV1 {
            baud_divisor_low: 12,
            baud_divisor_high: 1,
            interrupt_enable: 5,
            interrupt_identification: 4,
            line_control: 3,
            line_status: 0x61,
            modem_control: 8,
            modem_status: 0xb0,
            scratch: 0x5a,
            fifo: b"fifo".to_vec(),
            backlog: b"more".to_vec(),
        },
    );
    looked.at(
        1,
        &RtcStateV1 {
            index: 0x0b,
            registers: (0..128).collect(),
            offset_seconds: -3600,
            seen_second: 1_795_225_000,
        },
    );
    looked.at(
        1,
        &I8042StateV1 {
            configuration: 0x34,
            awaiting: 0x60,
            output: Some(0x55),
        },
    );
    looked.at(1, &AcpiPowerStateV1 { pending_events: 1 });
    let mmio = MmioStateV1 {
        device_id: 2,
        device_features_sel: 1,
        driver_features_sel: 1,
        driver_features: 0x1_3000_6246,
        queue_sel: 1,
        status: 15,
        interrupt_status: 1,
        queues: vec![QueueStateV1 {
            max_size: 256,
            size: 128,
            ready: true,
            desc_table: 0x1_0000_0000,
            avail_ring: 0x1_0000_1000,
            used_ring: 0x1_0000_2000,
            next_avail: 65535,
            next_used: 65534,
        }],
    };
    looked.at(1, &MmioStateV2::from(mmio.clone()));
    looked.at(
        2,
        &MmioStateV2 {
            first: mmio,
            parked: vec![vec![127, 0]],
        },
    );
    looked.at(
        1,
        &BlockStateV1 {
            capacity_sectors: 2048,
            serial: "disk-0".into(),
            read_only: false,
        },
    );
    looked.at(
        1,
        &ConsoleStateV1 {
            input: b"typed".to_vec(),
        },
    );
    looked.at(1, &RngStateV1 {});
    looked.at(
        1,
        &NetStateV1 {
            mac: [0x52, 0x54, 0, 0x12, 0x34, 0x56],
            pairs: 2,
            announcing: true,
            offloads: 0x4f,
            filter: FilterV1 {
                promiscuous: false,
                all_multicast: true,
                all_unicast: false,
                no_multicast: false,
                no_unicast: true,
                no_broadcast: false,
                unicast: TableV1::These(vec![[2, 0, 0, 0, 0, 1]]),
                multicast: TableV1::All,
            },
        },
    );

    if looked.0.is_empty() {
        // They were written.
        return;
    }
    let mut there: Vec<_> = std::fs::read_dir(goldens())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("component-"))
        .collect();
    there.sort();
    looked.0.sort();
    assert_eq!(there, looked.0, "a golden that nobody looks at");
    for kind in v1::KINDS {
        let first = format!("component-{kind}-v1.bin");
        assert!(there.contains(&first), "{first}");
    }
}
