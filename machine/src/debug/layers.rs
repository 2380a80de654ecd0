//! The layers over images that only whoever tests this program asks for.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use block::Stack;
use block::control_file::ControlFile;
use block::recorder::Recorder;
use migration::observation::{Observation, Side};

/// Names a file that orders faults of disks, see [`block::control_file`].
const FAULTS_VARIABLE: &str = "VMM_DEBUG_DISK_FAULTS";
/// Names a folder for recordings of images, see [`block::recorder`].
const RECORDINGS_VARIABLE: &str = "VMM_DEBUG_DISK_RECORDINGS";
/// So many images of a process are recorded.
const RECORDINGS: usize = 8;
/// Longest recording, in bytes.
const LONGEST: u64 = 1 << 30;

/// What is laid over each image: nothing, unless somebody asked for it.
#[derive(Debug, Clone, Default)]
pub struct DebugLayers {
    faults: Option<ControlFile>,
    /// Those that nothing is recorded in yet, the next one last. Open from the start, as nothing can be opened later.
    recordings: Arc<Mutex<Vec<File>>>,
}

impl DebugLayers {
    /// What this process was asked for. Called at the start, where it may still open files.
    ///
    /// # Errors
    /// `usage.debug` when something cannot be opened.
    pub(crate) fn asked_for(side: Side) -> Result<Self, Observation> {
        let faults = opened(side, FAULTS_VARIABLE, ControlFile::open)?;
        let recordings = opened(side, RECORDINGS_VARIABLE, |folder| {
            let name = |number| format!("{}-{number}.recording", std::process::id());
            let numbers = (0..RECORDINGS).rev();
            numbers
                .map(|number| File::create_new(folder.join(name(number))))
                .collect::<io::Result<Vec<_>>>()
        })?;
        Ok(Self {
            faults,
            recordings: Arc::new(Mutex::new(recordings.unwrap_or_default())),
        })
    }

    /// Does what is ordered for the opening of disk `id` at `path`.
    ///
    /// # Errors
    /// When it is to fail.
    pub(crate) fn opening(&self, id: &str, path: &Path) -> block::Result<()> {
        let faults = self.faults.as_ref();
        faults.map_or(Ok(()), |faults| faults.opening(id, path))
    }

    /// Lays them over an image that disk `id` begins with.
    pub(crate) fn lay(&self, id: &str, stack: &mut Stack) {
        let mut files = self
            .recordings
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = files.pop() {
            // Below the faults: what is recorded is what the image was given.
            stack.lay(|image| Recorder::to_file(image, file, LONGEST));
        }
        if let Some(faults) = &self.faults {
            stack.lay(|image| faults.layer(id, image));
        }
    }
}

/// What `open` opens of what a variable names, if it is set.
fn opened<T>(
    side: Side,
    variable: &str,
    open: impl FnOnce(&Path) -> io::Result<T>,
) -> Result<Option<T>, Observation> {
    let Some(path) = std::env::var_os(variable) else {
        return Ok(None);
    };
    tracing::warn!("disks are as {variable} orders");
    open(Path::new(&path)).map(Some).map_err(|e| {
        let what = format!("cannot open what {variable} names");
        let cause = Observation::from_error(side, "usage.debug", &e);
        Observation::new(side, "usage.debug", what).caused_by(cause)
    })
}
