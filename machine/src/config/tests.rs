use super::*;

fn file(text: &str) -> Result<RunOptions, String> {
    RunOptions::from_toml(text, Path::new("/conf"))
}

#[test]
fn defaults_are_one_cpu_and_256_mib() {
    let config = RunOptions::default().into_config("a".into()).unwrap();
    assert_eq!((config.cpus, config.memory), (1, 256 << 20));
    assert_eq!(config.kernel, None);
    assert_eq!(config.cmdline, "");
}

#[test]
fn the_command_line_wins_over_the_file() {
    let from_file = file(
        "cpus = 4\nmemory = \"1GiB\"\nkernel = \"k\"\n[[disk]]\npath = \"/d.img\"\nreadonly = true\n",
    )
    .unwrap();
    let said = RunOptions {
        cpus: Some(2),
        ..RunOptions::default()
    };
    let config = said.or(from_file).into_config("a".into()).unwrap();
    assert_eq!((config.cpus, config.memory), (2, 1 << 30));
    assert_eq!(config.kernel, Some("/conf/k".into()));
    let disk = DiskConfig {
        path: "/d.img".into(),
        format: DiskFormat::Guessed,
        readonly: true,
        id: "disk0".into(),
    };
    assert_eq!(config.disks, [disk]);
}

#[test]
fn unknown_keys_are_refused_with_name_and_line() {
    for (text, line, key) in [
        ("cpus = 1\nnets = \"tap0\"\n", "line 2", "nets"),
        ("[[net]]\ntap = \"t\"\nmtu = 9000\n", "line 3", "mtu"),
        (
            "[[disk]]\npath = \"a\"\ncache = \"none\"\n",
            "line 3",
            "cache",
        ),
        ("cpus = 1\ncpus = 2\n", "line 2", "duplicate"),
        ("cpus = \"many\"\n", "line 1", "u8"),
        ("cpus = 300\n", "line 1", "u8"),
        ("cpus = \n", "line 1", ""),
    ] {
        let error = file(text).unwrap_err();
        assert!(
            error.contains(line) && error.contains(key),
            "{text:?}: {error}"
        );
    }
}

#[test]
fn wrong_values_say_what_is_supported() {
    for (text, said) in [
        ("cpu = \"x86-64-v9\"", "host"),
        ("pages = \"1g\"", "thp"),
        ("memory = \"lots\"", "GiB"),
        ("[[disk]]\npath = \"a\"\nformat = \"qcow2\"", "raw"),
        ("[[net]]\ntap = \"a b\"", "1 to 15"),
        ("[[net]]\ntap = \"a\"\nqueues = 9", "1 to 8"),
        ("[[net]]\ntap = \"a\"\nmac = \"1:2\"", "six bytes"),
    ] {
        let error = file(text).unwrap_err();
        assert!(error.contains(said), "{text:?}: {error}");
    }
}

#[test]
fn out_of_range_machines_are_usage_errors() {
    let disk = |id: &str| DiskArg {
        path: "/d".into(),
        format: DiskFormat::Guessed,
        readonly: false,
        id: Some(id.into()),
    };
    let base = RunOptions::default;
    for (options, id) in [
        (
            RunOptions {
                cpus: Some(0),
                ..base()
            },
            "usage.cpus",
        ),
        (
            RunOptions {
                cpus: Some(17),
                ..base()
            },
            "usage.cpus",
        ),
        (
            RunOptions {
                memory: Some(0),
                ..base()
            },
            "usage.memory",
        ),
        (
            RunOptions {
                memory: Some(4097),
                ..base()
            },
            "usage.memory",
        ),
        (
            RunOptions {
                initrd: Some("/i".into()),
                ..base()
            },
            "usage.initrd",
        ),
        (
            RunOptions {
                disks: vec![disk("a"), disk("a")],
                ..base()
            },
            "usage.disk",
        ),
        (
            RunOptions {
                disks: vec![disk("a/b")],
                ..base()
            },
            "usage.disk",
        ),
        (
            RunOptions {
                disks: vec![disk(&"x".repeat(21))],
                ..base()
            },
            "usage.disk",
        ),
    ] {
        assert_eq!(options.into_config("a".into()).unwrap_err().id, id);
    }
}

#[test]
fn disk_options_are_read_or_refused() {
    let disk: DiskArg = "/a.img,readonly,format=raw,id=root".parse().unwrap();
    assert_eq!(
        disk,
        DiskArg {
            path: "/a.img".into(),
            format: DiskFormat::Raw,
            readonly: true,
            id: Some("root".into())
        }
    );
    for text in ["", ",readonly", "/a,format=qcow2", "/a,cache=none", "/a,ro"] {
        assert!(text.parse::<DiskArg>().is_err(), "{text}");
    }
    assert_eq!(
        parse_disk_override("root=/b"),
        Ok(("root".into(), "/b".into()))
    );
    assert!(parse_disk_override("root").is_err());
}

#[test]
fn interfaces_are_numbered_and_share_the_slots_with_disks() {
    let from_file =
        file("[[net]]\ntap = \"t0\"\nqueues = 2\n[[net]]\ntap = \"t1\"\nid = \"lan\"\n").unwrap();
    let config = from_file.into_config("a".into()).unwrap();
    let said: Vec<_> = config
        .nets
        .iter()
        .map(|net| (net.id.as_str(), net.tap.as_str(), net.queues))
        .collect();
    assert_eq!(said, [("net0", "t0", 2), ("lan", "t1", 1)]);

    let with = |nets: Vec<NetArg>| RunOptions {
        nets,
        ..RunOptions::default()
    };
    let net: NetArg = "tap=t0,id=x".parse().unwrap();
    let twice = with(vec![net.clone(), net]).into_config("a".into());
    assert_eq!(twice.unwrap_err().id, "usage.net");
    let many = with(vec!["tap=t0".parse().unwrap(); 16]).into_config("a".into());
    assert_eq!(many.unwrap_err().id, "usage.devices");
}
