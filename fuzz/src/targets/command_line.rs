//! The command line, as words.

use clap::Parser;
use vmm::cli::{Cli, Command};

use super::seeds::texts;
use crate::{Memory, Target};

/// Words of a command line, one a line.
pub(super) const COMMAND_LINE: Target = Target {
    name: "command-line",
    run,
    seeds,
    words: &[
        "run\n",
        "migrate\n",
        "receive\n",
        "--disk\n",
        "--to\n",
        "--set\n",
        "downtime-limit=",
        "bandwidth=",
        "--memory\n",
        "--listen\n",
        "--json\n",
        "--timeout\n",
        "=",
        "\n",
        "--",
    ],
    longest: 512,
    memory: Memory {
        base: 4 << 20,
        per_byte: 4 << 10,
    },
};

fn run(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let words = std::iter::once("vmm").chain(text.split('\n'));
    match Cli::try_parse_from(words) {
        Ok(cli) => match cli.command {
            Command::Run(_) | Command::Receive(_) | Command::Migrate(_) => {}
            _ => {}
        },
        Err(error) => {
            let _ = error.to_string();
        }
    }
}

fn seeds() -> Vec<Vec<u8>> {
    texts(&[
        "run\na\n--cpus\n4\n--memory\n1GiB\n--disk\nd.img,readonly,id=x\n--detach",
        "--json\nreceive\n--listen\n127.0.0.1:0\n--name\nb\n--disk\nx=/d.img",
        "migrate\na\n--to\nh:1\n--downtime-limit\n50ms\n--bandwidth\n500MiB/s\n--streams\n4",
        "migrate\na\n--set\ndowntime-limit=1s,bandwidth=unlimited",
        "wait\na\n--state\nrunning\n--timeout\n30s",
        "bench\n--runs\n3\n--memory\n512MiB\n--only\nidle",
        "demo\n--memory=1GiB",
    ])
}
