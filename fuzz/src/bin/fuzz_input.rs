//! `fuzz-input TARGET FILE...` runs a target with inputs; `fuzz-input --seeds TARGET FOLDER` writes
//! the well-formed inputs that a corpus begins with; `fuzz-input --list` names the targets.

use std::path::Path;
use std::process::ExitCode;

use fuzz::{Turn, check, corpus, targets};

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let done = match words[..] {
        ["--list"] => {
            targets::ALL.iter().for_each(|t| println!("{}", t.name));
            Ok(())
        }
        ["--longest", name] => targets::find(name).map(|t| println!("{}", t.longest)),
        ["--seeds", name, folder] => write_seeds(name, Path::new(folder)),
        [name, ref files @ ..] if !name.starts_with('-') => run(name, files),
        _ => Err("usage: fuzz-input TARGET FILE..., --seeds TARGET FOLDER, --list".into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("fuzz-input: {why}");
            ExitCode::FAILURE
        }
    }
}

fn write_seeds(name: &str, folder: &Path) -> Result<(), String> {
    std::fs::create_dir_all(folder).map_err(|e| e.to_string())?;
    for seed in (targets::find(name)?.seeds)() {
        std::fs::write(folder.join(corpus::digest(&seed)), &seed).map_err(|e| e.to_string())?;
    }
    Ok(())
}

fn run(name: &str, files: &[&str]) -> Result<(), String> {
    let target = targets::find(name)?;
    let turn = Turn::take();
    for file in files {
        let input = std::fs::read(file).map_err(|e| format!("{file}: {e}"))?;
        check(&turn, target, &input).map_err(|found| format!("{file}: {found}"))?;
    }
    println!("{} inputs pass", files.len());
    Ok(())
}
