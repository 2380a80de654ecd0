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
        "cpus = 4\nmemory = \"1GiB\"\nkernel = \"k\"\n[[disk]]\npath = \"/d.img\"\nreadonly = true\ncache = \"none\"\n",
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
        cache: DiskCache::None,
        id: "disk0".into(),
    };
    assert_eq!(config.disks, [disk]);
}

#[test]
fn a_file_names_folders_of_backing_files_and_the_command_line_others() {
    let text = "allow_backing = [\"bases\", \"/b\"]\n[[disk]]\npath = \"d\"\nformat = \"qcow2\"\n";
    let config = file(text).unwrap().into_config("a".into()).unwrap();
    assert_eq!(config.disks[0].format, DiskFormat::Qcow2);
    assert_eq!(
        config.allow_backing,
        [Path::new("/conf/bases"), Path::new("/b")]
    );
    let said = RunOptions {
        allow_backing: vec!["/c".into()],
        ..RunOptions::default()
    };
    let config = said.or(file(text).unwrap()).into_config("a".into());
    assert_eq!(config.unwrap().allow_backing, [Path::new("/c")]);
}

#[test]
fn unknown_keys_are_refused_with_name_and_line() {
    for (text, line, key) in [
        ("cpus = 1\nnets = \"tap0\"\n", "line 2", "nets"),
        ("[[net]]\ntap = \"t\"\nmtu = 9000\n", "line 3", "mtu"),
        (
            "[[disk]]\npath = \"a\"\ndiscard = \"on\"\n",
            "line 3",
            "discard",
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
        ("[[disk]]\npath = \"a\"\nformat = \"vmdk\"", "qcow2"),
        ("[[disk]]\npath = \"a\"\ncache = \"unsafe\"", "writeback"),
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
        cache: DiskCache::Writeback,
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
            cache: DiskCache::Writeback,
            id: Some("root".into())
        }
    );
    let disk: DiskArg = "/a.qcow2,format=qcow2".parse().unwrap();
    assert_eq!(disk.format, DiskFormat::Qcow2);
    let cache = |text: &str| text.parse::<DiskArg>().unwrap().cache;
    assert_eq!(cache("/a,cache=none"), DiskCache::None);
    assert_eq!(cache("/a,cache=writeback,readonly"), DiskCache::Writeback);
    let of_qcow2: DiskArg = "/a,format=qcow2,cache=none".parse().unwrap();
    let options = RunOptions {
        disks: vec![of_qcow2],
        ..RunOptions::default()
    };
    let refused = options.into_config("a".into()).unwrap_err();
    assert_eq!(refused.id, "usage.disk");
    for text in [
        "",
        ",readonly",
        "/a,format=vmdk",
        "/a,cache=unsafe",
        "/a,ro",
    ] {
        assert!(text.parse::<DiskArg>().is_err(), "{text}");
    }
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
