//! Jobs that are over: the newest of them are kept.

use std::collections::VecDeque;

use control::job::Job;

/// Jobs that are told of beside the newest.
const KEPT: usize = 16;

/// Jobs that ended, each with its number among all that began, in the order of their ends.
#[derive(Default)]
pub(crate) struct EndedJobs(VecDeque<(u64, Job)>);

impl EndedJobs {
    pub(super) fn push(&mut self, began: u64, job: Job) {
        if self.0.len() == KEPT {
            self.0.pop_front();
        }
        self.0.push_back((began, job));
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &(u64, Job)> {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_any_number_of_ended_jobs_the_newest_are_kept() {
        let mut ended = EndedJobs::default();
        for n in 0..100 {
            ended.push(n, Job::of_migration(n.to_string(), &[]));
        }
        let ids: Vec<_> = ended.iter().map(|(_, job)| job.id.as_str()).collect();
        assert_eq!((ids.len(), ids[0], ids[15]), (16, "84", "99"));
    }
}
