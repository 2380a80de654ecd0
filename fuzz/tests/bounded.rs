//! Every target for a bounded time: its kept corpus, then mutations of it.

use fuzz::corpus::{self, Bounds};
use fuzz::{Turn, targets};

fn bounded(name: &str) {
    let target = targets::find(name).unwrap();
    let bounds = Bounds::of_environment();
    match corpus::run(target, bounds) {
        Ok(tried) => println!(
            "{name}: {} kept inputs and {} mutations of seed {} pass",
            tried.kept, tried.mutations, bounds.seed
        ),
        Err(why) => panic!("{why}"),
    }
}

macro_rules! bounded {
    ($($test:ident: $name:literal,)*) => {
        $(
            #[test]
            fn $test() {
                bounded($name);
            }
        )*

        #[test]
        fn every_target_is_run_and_has_a_corpus() {
            let mut run = vec![$($name),*];
            let mut all: Vec<_> = targets::ALL.iter().map(|target| target.name).collect();
            run.sort_unstable();
            all.sort_unstable();
            assert_eq!(run, all);
            let _turn = Turn::take();
            for target in targets::ALL {
                assert!(!corpus::kept(target).unwrap().is_empty(), "{}", target.name);
            }
        }
    };
}

bounded! {
    hello: "hello",
    control: "control",
    batch: "batch",
    session: "session",
    source: "source",
    pull_server: "pull-server",
    pull_client: "pull-client",
    journal: "journal",
    state: "state",
    machine: "machine",
    description: "description",
    agreement: "agreement",
    kernel: "kernel",
    qcow2: "qcow2",
    presence_map: "presence-map",
    virtio_block: "virtio-block",
    virtio_console: "virtio-console",
    virtio_rng: "virtio-rng",
    virtio_net: "virtio-net",
    legacy: "legacy",
    http: "http",
    json: "json",
    files: "files",
    config: "config",
    cpu_model: "cpu-model",
    command_line: "command-line",
    units: "units",
    probe: "probe",
    keys: "keys",
}
