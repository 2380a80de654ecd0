//! The disks of a VM as they are said to `vmm run`.

use control::disk_move::ImageFormat;
use control::instance::DiskStatus;

/// Options that give a VM these disks, in their order; a shell reads them back as they are.
pub(super) fn disk_options(disks: &[DiskStatus]) -> String {
    let options: Vec<_> = disks.iter().map(option).collect();
    options.join(" ")
}

fn option(disk: &DiskStatus) -> String {
    let DiskStatus {
        id,
        path,
        format,
        size_bytes: _,
        read_only,
        missing: _,
    } = disk;
    let format = match format {
        ImageFormat::Raw => "raw",
        ImageFormat::Qcow2 => "qcow2",
    };
    let read_only = if *read_only { ",readonly" } else { "" };
    let said = quoted(&format!("{path},format={format}{read_only},id={id}"));
    // There the path ends at the first comma; a file has it whole.
    match path.contains(',') {
        true => format!("(a [[disk]] in --config for {said})"),
        false => format!("--disk {said}"),
    }
}

/// As one word of a shell.
fn quoted(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-=,:+@".contains(c);
    match text.chars().all(is_plain) {
        true => text.into(),
        false => format!("'{}'", text.replace('\'', "'\\''")),
    }
}

#[cfg(test)]
mod tests {
    use machine::config::{DiskArg, DiskFormat};

    use super::*;

    fn disk(path: &str, format: ImageFormat, read_only: bool) -> DiskStatus {
        DiskStatus {
            id: "data".into(),
            path: path.into(),
            format,
            size_bytes: 512,
            missing: None,
            read_only,
        }
    }

    #[test]
    fn what_is_told_gives_the_same_disk_again() {
        for (format, read_only, is) in [
            (ImageFormat::Raw, false, DiskFormat::Raw),
            (ImageFormat::Qcow2, true, DiskFormat::Qcow2),
        ] {
            let told = disk_options(&[disk("/mnt/b/data.img", format, read_only)]);
            let read: DiskArg = told.strip_prefix("--disk ").unwrap().parse().unwrap();
            assert_eq!(read.path.to_str(), Some("/mnt/b/data.img"));
            assert_eq!((read.format, read.readonly), (is, read_only));
            assert_eq!(read.id.as_deref(), Some("data"));
        }
    }

    #[test]
    fn a_shell_reads_a_path_as_it_is() {
        let told = disk_options(&[disk("/mnt/my disk's", ImageFormat::Raw, false)]);
        assert_eq!(told, r"--disk '/mnt/my disk'\''s,format=raw,id=data'");
        let told = disk_options(&[disk("/mnt/a,b", ImageFormat::Raw, false)]);
        assert!(!told.contains("--disk "), "{told}");
    }
}
