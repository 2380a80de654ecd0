//! Images that disks have left, once their guest runs elsewhere with them: those that are to go are removed by whoever
//! asked for the migration, as the process of the VM may not.

use std::path::Path;

use control::exit::local;
use control::runtime_dir::RuntimeDir;
use machine::disk_target::remove_old;
use migration::MigrationId;
use migration::disk_modes::AfterMove;
use migration::journal::FileJournal;
use migration::observation::Observation;
use migration::progress::{LeftImage, Report};
use migration::request::MigrateRequest;

/// Removes those of which `asked` says so, after a migration that completed as `report` tells, and notes in it which are
/// gone. What came in the way of the others.
pub(super) fn remove(
    report: &mut Report,
    asked: &MigrateRequest,
    runtime: &RuntimeDir,
) -> Vec<Observation> {
    let are_to_go = asked
        .disks
        .iter()
        .any(|disk| disk.after == AfterMove::Delete);
    if !are_to_go || report.status != "completed" {
        return Vec::new();
    }
    let id = report.migration_id.clone();
    let is_lost = |why: &Observation| why.id == "migration.report-lost";
    let Some(disks) = &mut report.disks else {
        if !report.warnings.iter().any(is_lost) {
            // None has travelled.
            return Vec::new();
        }
        let message =
            "no image is removed here: it is not known any more which disks the destination holds";
        return vec![local("disk.not-removed", message)];
    };
    let to_go = disks.left.iter_mut();
    let to_go = to_go.filter(|left| left.after == AfterMove::Delete);
    let mut in_the_way = Vec::new();
    for left in to_go {
        match remove_one(left, &id, runtime) {
            Ok(()) => left.removed = true,
            Err(why) => in_the_way.push(why),
        }
    }
    in_the_way
}

fn remove_one(left: &LeftImage, id: &str, runtime: &RuntimeDir) -> Result<(), Observation> {
    let LeftImage {
        id: disk,
        path,
        after: _,
        whole,
        removed: _,
    } = left;
    let kept = |why: &str| {
        let message = format!("the image of disk {disk} is kept: {why}");
        local("disk.not-removed", message)
    };
    let Some(path) = path else {
        return Err(kept("its path is not known"));
    };
    if !whole {
        return Err(kept(
            "the destination did not say that it holds the disk whole and durable",
        ));
    }
    let id: MigrationId = id
        .parse()
        .map_err(|_| kept("it is not known in which migration the disk left"))?;
    let journal = runtime.migrations().map(FileJournal::open);
    match journal {
        Some(Ok(journal)) => remove_old(Path::new(path), id, &journal),
        Some(Err(_)) | None => Err(kept("the records of migrations cannot be read")),
    }
}

#[cfg(test)]
mod tests {
    use migration::disk_modes::{DiskChoice, DiskMode};
    use migration::progress::DisksReport;

    use super::*;

    fn asked(after: AfterMove) -> MigrateRequest {
        let disk = DiskChoice {
            after,
            ..DiskChoice::new(None, DiskMode::Precopy)
        };
        MigrateRequest {
            disks: vec![disk],
            ..MigrateRequest::new("h:1")
        }
    }

    fn completed(left: LeftImage) -> Report {
        Report {
            status: "completed".into(),
            migration_id: "0".repeat(32),
            disks: Some(DisksReport {
                left: vec![left],
                ..DisksReport::default()
            }),
            ..Report::default()
        }
    }

    /// Whatever a report says, an image goes only if its own mark and the journal say that its disk has left in this
    /// very migration.
    #[test]
    fn nothing_goes_that_is_not_known_to_have_left() {
        let files = tempfile::tempdir().unwrap();
        let runtime = RuntimeDir::at(files.path().join("rt")).unwrap();
        let image = files.path().join("image");
        std::fs::write(&image, [0; 512]).unwrap();
        let left = LeftImage {
            id: "data".into(),
            path: Some(image.display().to_string()),
            after: AfterMove::Delete,
            whole: true,
            removed: false,
        };
        let not_whole = LeftImage {
            whole: false,
            ..left.clone()
        };
        for (left, why) in [(&left, "moved away"), (&not_whole, "whole and durable")] {
            let mut report = completed(left.clone());
            let said = remove(&mut report, &asked(AfterMove::Delete), &runtime);
            assert!(said.len() == 1 && said[0].message.contains(why), "{said:?}");
            assert!(!report.disks.unwrap().left[0].removed);
        }
        for status in ["planned", "failed", "handover-unknown"] {
            let mut report = completed(left.clone());
            report.status = status.into();
            let said = remove(&mut report, &asked(AfterMove::Delete), &runtime);
            assert_eq!(said, [], "{status}");
        }
        let kept = LeftImage {
            after: AfterMove::Keep,
            ..left
        };
        let said = remove(&mut completed(kept), &asked(AfterMove::Keep), &runtime);
        assert_eq!(said, []);
        let mut lost = Report {
            status: "completed".into(),
            warnings: vec![local("migration.report-lost", "lost")],
            ..Report::default()
        };
        let said = remove(&mut lost, &asked(AfterMove::Delete), &runtime);
        assert_eq!(said.len(), 1);
        assert!(image.exists());
    }
}
