//! Bus, serial port, clock and power, as a guest sees them.

#[path = "common/mod.rs"]
mod common;

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use common::{CountedInterrupt, wait_until};
use devices::power::{AcpiPower, I8042, I8042StateV1, PowerControl, ResetControl};
use devices::rtc::Rtc;
use devices::serial::Serial;
use devices::{Bus, BusDevice, Error, EventFdInterrupt, Interrupt};
use proptest::prelude::*;

/// Collects what is written, and how often.
#[derive(Clone, Default)]
struct Sink(Arc<Mutex<(Vec<u8>, usize)>>);

impl Sink {
    fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap().0.clone()
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut inner = self.0.lock().unwrap();
        inner.0.extend_from_slice(bytes);
        inner.1 += 1;
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn get(device: &dyn BusDevice, offset: u64) -> u8 {
    let mut byte = [0xee];
    device.read(offset, &mut byte);
    byte[0]
}

fn put(device: &dyn BusDevice, offset: u64, byte: u8) {
    device.write(offset, &[byte]);
}

struct Echo(AtomicU32);

impl BusDevice for Echo {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(offset as u8);
    }
    fn write(&self, offset: u64, _data: &[u8]) {
        self.0.store(offset as u32, Ordering::SeqCst);
    }
}

#[test]
fn bus_finds_devices_by_address_and_refuses_overlap() {
    let mut bus = Bus::new();
    let echo = || Arc::new(Echo(AtomicU32::new(0)));
    bus.insert(0x100, 0x10, echo()).unwrap();
    bus.insert(0x120, 1, echo()).unwrap();
    bus.insert(u64::MAX, 1, echo()).unwrap();
    bus.insert(0x110, 0x10, echo()).unwrap();
    for (base, len) in [
        (0x100, 1),
        (0xff, 2),
        (0x10f, 1),
        (0x10f, 2),
        (0, u64::MAX),
        (0x120, 9),
    ] {
        let refused = bus.insert(base, len, echo());
        assert!(
            matches!(refused, Err(Error::Overlap { .. })),
            "{base:#x} {len:#x}"
        );
    }
    for (base, len) in [(0, 0), (u64::MAX, 2)] {
        assert!(matches!(
            bus.insert(base, len, echo()),
            Err(Error::BadRange { .. })
        ));
    }
    let mut data = [0; 2];
    assert!(bus.read(0x104, &mut data));
    assert_eq!(data, [4, 4]);
    assert!(bus.read(0x110, &mut data));
    assert_eq!(data, [0, 0]);
    for unclaimed in [0, 0xff, 0x121, 0x10f, 0x120] {
        let mut data = [0; 2];
        assert!(!bus.read(unclaimed, &mut data), "{unclaimed:#x}");
        assert_eq!(data, [0xff, 0xff]);
        assert!(!bus.write(unclaimed, &data));
    }
    assert!(bus.read(u64::MAX, &mut [0]));
    assert!(!bus.read(u64::MAX, &mut [0; 2]));
}

#[test]
fn interrupt_reaches_its_event_descriptor() {
    let interrupt = EventFdInterrupt::new().unwrap();
    interrupt.trigger().unwrap();
    interrupt.trigger().unwrap();
    assert_eq!(interrupt.event().read().unwrap(), 2);
}

fn serial() -> (Arc<CountedInterrupt>, Sink, Serial) {
    let interrupt = Arc::new(CountedInterrupt::default());
    let sink = Sink::default();
    let serial = Serial::new(interrupt.clone(), Box::new(sink.clone())).unwrap();
    (interrupt, sink, serial)
}

#[test]
fn serial_output_is_gathered_but_a_prompt_appears() {
    let (_interrupt, sink, serial) = serial();
    for byte in b"login: " {
        put(&serial, 0, *byte);
    }
    wait_until("prompt without a newline", || sink.bytes() == b"login: ");
    for _ in 0..100 {
        for byte in b"a line of output, as kernels print it\n" {
            put(&serial, 0, *byte);
        }
    }
    assert!(serial.drain_output(Duration::from_secs(20)));
    let (bytes, writes) = sink.0.lock().unwrap().clone();
    assert_eq!(bytes.len(), 7 + 100 * 38);
    assert!(writes < bytes.len() / 4, "{writes} writes");
}

#[test]
fn serial_output_is_complete_when_the_port_is_dropped() {
    let (_interrupt, sink, serial) = serial();
    for byte in b"last words" {
        put(&serial, 0, *byte);
    }
    drop(serial);
    assert_eq!(sink.bytes(), b"last words");
}

#[test]
fn a_reader_who_does_not_read_stops_neither_guest_nor_port() {
    struct Stuck(Arc<(Mutex<bool>, Condvar)>);
    impl Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut open = self.0.0.lock().unwrap();
            while !*open {
                open = self.0.1.wait(open).unwrap();
            }
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let gate = Arc::new((Mutex::new(false), Condvar::new()));
    let out = Box::new(Stuck(Arc::clone(&gate)));
    let serial = Serial::new(Arc::new(CountedInterrupt::default()), out).unwrap();
    for _ in 0..(2 << 20) {
        put(&serial, 0, b'x');
    }
    assert!(!serial.drain_output(Duration::from_millis(1)));
    *gate.0.lock().unwrap() = true;
    gate.1.notify_all();
    assert!(serial.drain_output(Duration::from_secs(20)));
}

#[test]
fn serial_input_waits_for_the_guest_and_interrupts_it() {
    let (interrupt, _sink, serial) = serial();
    put(&serial, 1, 1);
    let line: Vec<u8> = (0..200).collect();
    assert_eq!(serial.enqueue_input(&line), 200);
    assert!(interrupt.count() > 0);
    let mut got = Vec::new();
    while get(&serial, 5) & 1 != 0 {
        got.push(get(&serial, 0));
    }
    assert_eq!(got, line);
    let flood = vec![0; 10_000];
    let taken = serial.enqueue_input(&flood);
    assert!((4096..=4096 + 64).contains(&taken), "{taken}");
}

#[test]
fn serial_input_that_finds_no_room_is_asked_for_again_until_all_is_read() {
    let (_interrupt, _sink, serial) = serial();
    let room = Arc::new(AtomicBool::new(false));
    serial.on_room(Box::new({
        let room = Arc::clone(&room);
        move || room.store(true, Ordering::SeqCst)
    }));
    let typed: Vec<u8> = (0..20_000).map(|n| (n % 251) as u8).collect();
    let mut given = serial.enqueue_input(&typed);
    assert!(given < typed.len());
    let mut read = Vec::new();
    while get(&serial, 5) & 1 != 0 {
        read.push(get(&serial, 0));
        if room.swap(false, Ordering::SeqCst) {
            let taken = serial.enqueue_input(&typed[given..]);
            assert!(taken > 0);
            given += taken;
        }
    }
    assert!(
        read == typed,
        "{} of {} bytes were read",
        read.len(),
        typed.len()
    );
}

#[test]
fn serial_port_goes_on_where_it_was_saved() {
    let (_interrupt, _sink, source) = serial();
    put(&source, 3, 0x80);
    put(&source, 0, 3);
    put(&source, 1, 1);
    put(&source, 3, 3);
    put(&source, 7, 0x5a);
    put(&source, 1, 1);
    let line: Vec<u8> = (0..150).collect();
    source.enqueue_input(&line);
    assert_eq!(get(&source, 0), 0);
    source.enqueue_input(b"!");
    let state = source.save();
    let (interrupt, _sink, destination) = serial();
    destination.load(state.clone()).unwrap();
    assert_eq!(destination.save(), state);
    destination.resume().unwrap();
    assert!(interrupt.count() > 0);
    let mut got = Vec::new();
    while get(&destination, 5) & 1 != 0 {
        got.push(get(&destination, 0));
    }
    assert_eq!(got, [&line[1..], b"!"].concat());
    assert_eq!(get(&destination, 7), 0x5a);

    let mut bad = state.clone();
    bad.fifo = vec![0; 65];
    assert!(matches!(destination.load(bad), Err(Error::BadState { .. })));
    let mut bad = state;
    bad.backlog = vec![0; 5000];
    assert!(matches!(destination.load(bad), Err(Error::BadState { .. })));
}

#[derive(Default)]
struct Power {
    resets: AtomicU32,
    offs: AtomicU32,
}

impl Power {
    fn counts(&self) -> (u32, u32) {
        (
            self.resets.load(Ordering::SeqCst),
            self.offs.load(Ordering::SeqCst),
        )
    }
}

impl PowerControl for Power {
    fn reset(&self) {
        self.resets.fetch_add(1, Ordering::SeqCst);
    }
    fn power_off(&self) {
        self.offs.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn reset_control_register_resets_and_keeps_nothing() {
    let power = Arc::new(Power::default());
    let register = ResetControl::new(power.clone());
    put(&register, 0, 0x02);
    assert_eq!(power.counts(), (0, 0));
    assert_eq!(get(&register, 0), 0);
    for way in [0x06, 0x0e] {
        put(&register, 0, way);
    }
    assert_eq!(power.counts(), (2, 0));
}

#[test]
fn keyboard_controller_resets_and_otherwise_answers_sanely() {
    let power = Arc::new(Power::default());
    let controller = I8042::new(power.clone());
    put(&controller, 4, 0xfe);
    assert_eq!(power.counts(), (1, 0));
    put(&controller, 4, 0xff);
    put(&controller, 4, 0xd1);
    put(&controller, 0, 0xff);
    assert_eq!(power.counts(), (1, 0));
    put(&controller, 4, 0xd1);
    put(&controller, 0, 0xfe);
    assert_eq!(power.counts(), (2, 0));
    // What drivers wait for: room to write, then an answer.
    assert_eq!(get(&controller, 4) & 3, 0);
    put(&controller, 4, 0xaa);
    assert_eq!(get(&controller, 4) & 1, 1);
    assert_eq!(get(&controller, 0), 0x55);
    assert_eq!(get(&controller, 4) & 1, 0);
    put(&controller, 4, 0x60);
    put(&controller, 0, 0x47);
    put(&controller, 4, 0x20);
    let state = controller.save();
    let next = I8042::new(power);
    next.load(state).unwrap();
    assert_eq!(get(&next, 0), 0x47);
    assert_eq!(get(&next, 1), 0xff);
    assert_eq!(
        next.save(),
        I8042StateV1 {
            configuration: 0x47,
            awaiting: 0,
            output: None
        }
    );
}

#[test]
fn acpi_registers_reset_power_off_and_report_the_button() {
    let power = Arc::new(Power::default());
    let interrupt = Arc::new(CountedInterrupt::default());
    let acpi = AcpiPower::new(power.clone(), interrupt.clone());
    for harmless in [0, 0x80, 0x20, 0x24, 0x14, 0xff] {
        put(&acpi, 0, harmless);
    }
    put(&acpi, 4, 1);
    assert_eq!(power.counts(), (0, 0));
    put(&acpi, 0, 1);
    put(&acpi, 0, 0x34);
    assert_eq!(power.counts(), (1, 1));
    assert_eq!(get(&acpi, 0), 0);
    assert_eq!(get(&acpi, 4), 0);
    acpi.press_power_button().unwrap();
    assert_eq!(interrupt.count(), 1);
    let state = acpi.save();
    assert_eq!((get(&acpi, 4), get(&acpi, 4)), (1, 0));
    // The press moves with the guest.
    let next = AcpiPower::new(power, interrupt.clone());
    next.load(state.clone()).unwrap();
    assert_eq!(interrupt.count(), 1);
    next.resume().unwrap();
    assert_eq!(interrupt.count(), 2);
    assert_eq!(get(&next, 4), 1);
    let mut bad = state;
    bad.pending_events = 2;
    assert!(matches!(next.load(bad), Err(Error::BadState { .. })));
}

fn cmos(rtc: &Rtc, index: u8) -> u8 {
    put(rtc, 0, index);
    get(rtc, 1)
}

fn set_cmos(rtc: &Rtc, index: u8, value: u8) {
    put(rtc, 0, index);
    put(rtc, 1, value);
}

fn host() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs() as i64
}

/// The time as a kernel reads it: BCD, 24 hours, read until stable. Years 2000 to 2099.
fn guest_time(rtc: &Rtc) -> i64 {
    let read = || [0, 2, 4, 7, 8, 9, 0x32].map(|index| cmos(rtc, index));
    let bcd = |value: u8| i64::from(value >> 4) * 10 + i64::from(value & 0xf);
    let mut time = read();
    loop {
        let again = read();
        if again == time {
            break;
        }
        time = again;
    }
    let [second, minute, hour, day, month, year, century] = time.map(bcd);
    assert_eq!(century, 20);
    let year = century * 100 + year;
    let lengths = [
        31,
        if year % 4 == 0 { 29 } else { 28 },
        31,
        30,
        31,
        30,
        31,
        31,
        30,
        31,
        30,
        31,
    ];
    let months: i64 = lengths[..month as usize - 1].iter().sum();
    let days = (year - 1970) * 365 + (year - 1969) / 4 + months + day - 1;
    ((days * 24 + hour) * 60 + minute) * 60 + second
}

fn rtc() -> (Arc<CountedInterrupt>, Rtc) {
    let interrupt = Arc::new(CountedInterrupt::default());
    let rtc = Rtc::new(interrupt.clone()).unwrap();
    (interrupt, rtc)
}

#[test]
fn clock_shows_the_hosts_time() {
    let (_interrupt, rtc) = rtc();
    let (before, seen, after) = (host(), guest_time(&rtc), host());
    assert!((before..=after).contains(&seen), "{before} {seen} {after}");
    assert_eq!(cmos(&rtc, 0x0d), 0x80);
    assert_eq!(cmos(&rtc, 0x0b), 0x02);
    assert_eq!(cmos(&rtc, 0x0a) & 0x7f, 0x26);
    assert_eq!(get(&rtc, 0), 0xff);
}

#[test]
fn clock_announces_that_it_is_about_to_change() {
    let (_interrupt, rtc) = rtc();
    put(&rtc, 0, 0x0a);
    // Seen within a second or two, unless the machine looks away at each turn of the second.
    wait_until("update in progress", || {
        (0..1000).any(|_| get(&rtc, 1) & 0x80 != 0)
    });
}

#[test]
fn a_guest_can_set_its_clock_and_takes_it_along() {
    let (_interrupt, clock) = rtc();
    set_cmos(&clock, 0x0b, 0x82);
    for (index, value) in [
        (0x32, 0x20),
        (9, 0x31),
        (8, 0x02),
        (7, 0x28),
        (4, 0x23),
        (2, 0x59),
        (0, 0x59),
    ] {
        set_cmos(&clock, index, value);
    }
    assert_eq!(cmos(&clock, 0), 0x59);
    set_cmos(&clock, 0x0b, 0x02);
    let set = 1_930_089_599;
    assert!((set..set + 10).contains(&guest_time(&clock)));
    set_cmos(&clock, 0x40, 0xa5);
    let state = clock.save();
    let (_interrupt, next) = rtc();
    next.load(state.clone()).unwrap();
    assert!((set..set + 20).contains(&guest_time(&next)));
    assert_eq!(cmos(&next, 0x40), 0xa5);
    // Garbage leaves it alone.
    set_cmos(&next, 8, 0x77);
    assert!((set..set + 20).contains(&guest_time(&next)));
    let mut bad = state;
    bad.registers.pop();
    assert!(matches!(next.load(bad), Err(Error::BadState { .. })));
}

#[test]
fn clock_interrupts_for_update_period_and_alarm() {
    for (name, enable, flag) in [
        ("update", 0x10, 0x10),
        ("period", 0x40, 0x40),
        ("alarm", 0x20, 0x20),
    ] {
        let (interrupt, rtc) = rtc();
        for alarm in [1, 3, 5] {
            set_cmos(&rtc, alarm, 0xff);
        }
        assert_eq!(interrupt.count(), 0, "{name}");
        cmos(&rtc, 0x0c);
        set_cmos(&rtc, 0x0b, 0x02 | enable);
        for round in 1..=2 {
            wait_until(name, || interrupt.count() == round);
            assert_eq!(cmos(&rtc, 0x0c) & (0x80 | flag), 0x80 | flag, "{name}");
        }
        set_cmos(&rtc, 0x0b, 0x02);
    }
}

#[test]
fn an_interrupt_that_the_guest_has_not_seen_is_raised_again() {
    let (interrupt, clock) = rtc();
    set_cmos(&clock, 0x0b, 0x12);
    wait_until("update", || interrupt.count() == 1);
    let state = clock.save();
    let (interrupt, next) = rtc();
    next.load(state).unwrap();
    next.resume().unwrap();
    assert!(interrupt.count() >= 1);
    assert_eq!(cmos(&next, 0x0c) & 0x90, 0x90);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn wild_accesses_and_states_break_nothing(
        accesses in prop::collection::vec((0u64..9, 0usize..9, any::<u8>(), any::<bool>()), 1..200),
        offset_seconds: i64, seen_second: i64,
    ) {
        let (_interrupt, clock) = rtc();
        let mut state = clock.save();
        state.offset_seconds = offset_seconds;
        state.seen_second = seen_second;
        state.registers.fill(0xff);
        clock.load(state).unwrap();
        let (_interrupt, _sink, port) = serial();
        let power = Arc::new(Power::default());
        let controller = I8042::new(power.clone());
        let acpi = AcpiPower::new(power, Arc::new(CountedInterrupt::default()));
        let devices: [&dyn BusDevice; 4] = [&clock, &port, &controller, &acpi];
        for (offset, len, value, write) in accesses {
            for device in devices {
                if write {
                    device.write(offset, &vec![value; len]);
                } else {
                    device.read(offset, &mut vec![0; len]);
                }
            }
        }
        let (_interrupt, _sink, next) = serial();
        next.load(port.save()).unwrap();
        prop_assert_eq!(next.save(), port.save());
        let (_interrupt, next) = rtc();
        next.load(clock.save()).unwrap();
    }
}
