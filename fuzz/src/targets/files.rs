//! Files that are passed to a VM: packets as clients send them.

use control::passed::{Answer, FILES_LIMIT, FileId, Passing};

use super::seeds::texts;
use crate::target::SMALL;
use crate::{Input, Target};

/// What is said with descriptors, and what is answered.
pub(super) const FILES: Target = Target {
    name: "files",
    run: files,
    seeds: || {
        texts(&[
            "\u{1}{\"version\":1,\"files\":[{\"kind\":\"disk\",\"access\":\"read\",\"name\":\"/a\"}]}",
            "\u{2}{\"version\":1,\"files\":[{\"kind\":\"disk\",\"access\":\"read-write\",\"name\":\"\"},\
             {\"kind\":\"output\",\"access\":\"write\",\"name\":\"b\"}]}",
            "\u{1}{\"version\":2,\"x\":[]}",
            "\u{0}{\"kept\":[\"00112233445566778899aabbccddeeff\"]}",
            "\u{0}{\"refused\":{\"id\":\"file.type\",\"message\":\"m\",\"side\":\"source\",\"at_us\":0}}",
        ])
    },
    words: &[
        "\"version\":1",
        "\"files\":[",
        "\"kind\":\"disk\"",
        "\"access\":\"read\"",
        "\"name\":",
        "\"kept\":[",
        "18446744073709551616",
        "\\u0000",
    ],
    longest: 4096,
    memory: SMALL,
};

fn files(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let descriptors = usize::from(input.u8() % 16);
    let packet = input.rest();
    match Passing::read(packet, descriptors) {
        Ok(passing) => {
            assert_eq!(passing.files.len(), descriptors);
            assert!((1..=FILES_LIMIT).contains(&descriptors));
            let written = serde_json::to_vec(&passing).expect("what was read can be written");
            assert_eq!(Passing::read(&written, descriptors), Ok(passing));
        }
        Err(why) => assert!(why.id.starts_with("file."), "{why}"),
    }
    let _ = serde_json::from_slice::<Answer>(packet);
    if let Ok(id) = String::from_utf8_lossy(packet).parse::<FileId>() {
        assert_eq!(id.to_string().parse(), Ok(id));
    }
}
