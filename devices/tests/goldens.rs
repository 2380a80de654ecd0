//! Saved states of earlier versions can still be read, and are still written so.
//!
//! `UPDATE_GOLDENS=1` writes the files anew, which is right only for states that never left a release.

use std::fmt::Debug;
use std::path::PathBuf;

use devices::power::{AcpiPowerStateV1, I8042StateV1};
use devices::rtc::RtcStateV1;
use devices::serial::SerialStateV1;
use devices::virtio::block::BlockStateV1;
use devices::virtio::console::ConsoleStateV1;
use devices::virtio::net::NetStateV1;
use devices::virtio::net::filter::{FilterV1, TableV1};
use devices::virtio::rng::RngStateV1;
use devices::virtio::{DeviceStateV1, QueueStateV1, TransportStateV1};
use serde::Serialize;
use serde::de::DeserializeOwned;

fn check<T: Serialize + DeserializeOwned + PartialEq + Debug>(name: &str, state: &T) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/goldens")
        .join(name);
    let text = serde_json::to_string_pretty(state).unwrap() + "\n";
    if std::env::var_os("UPDATE_GOLDENS").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap();
    assert_eq!(
        &serde_json::from_str::<T>(&golden).unwrap(),
        state,
        "{name} is read differently"
    );
    assert_eq!(text, golden, "{name} is written differently");
}

fn transport(device_id: u32, device: DeviceStateV1) -> TransportStateV1 {
    TransportStateV1 {
        device_id,
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
        device,
    }
}

#[test]
fn states_are_read_and_written_as_they_always_were() {
    check(
        "serial-v1.json",
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
    check(
        "rtc-v1.json",
        &RtcStateV1 {
            index: 0x0b,
            registers: (0..128).collect(),
            offset_seconds: -3600,
            seen_second: 1_795_225_000,
        },
    );
    check(
        "acpi-power-v1.json",
        &AcpiPowerStateV1 { pending_events: 1 },
    );
    let i8042 = I8042StateV1 {
        configuration: 0x34,
        awaiting: 0x60,
        output: Some(0x55),
    };
    check("i8042-v1.json", &i8042);
    let disk = BlockStateV1 {
        capacity_sectors: 2048,
        serial: "disk-0".into(),
        read_only: false,
    };
    check(
        "virtio-block-v1.json",
        &transport(2, DeviceStateV1::Block(disk)),
    );
    let console = ConsoleStateV1 {
        input: b"typed".to_vec(),
    };
    check(
        "virtio-console-v1.json",
        &transport(3, DeviceStateV1::Console(console)),
    );
    check(
        "virtio-rng-v1.json",
        &transport(4, DeviceStateV1::Rng(RngStateV1 {})),
    );
    let net = NetStateV1 {
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
    };
    check("virtio-net-v1.json", &transport(1, DeviceStateV1::Net(net)));
}
