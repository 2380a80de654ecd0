//! The forms in which a saved machine travels.

use crate::build::spec::MachineSpec;
use crate::devices::DevicesState;
use crate::error::MachineError;
use crate::snapshot::agreement::Agreed;
use crate::snapshot::codec;
use crate::snapshot::saved::{Saved, SavedError, Saving};
use crate::state::parts::MachineState;
use crate::state::v1::{self, MachineStateV1};

/// How a saved machine travels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Form {
    /// As one struct, [`MachineStateV1`]: toward peers that agree on no versions.
    One,
    /// As a list of components, each in the version that was agreed on.
    Components(Agreed),
}

impl MachineState {
    /// As it travels.
    ///
    /// # Errors
    /// When it would be too long, or a component has no version in this form.
    pub fn encode(self, form: &Form) -> Result<Vec<u8>, MachineError> {
        match form {
            Form::One => Ok(codec::encode(
                v1::VERSION,
                &MachineStateV1::try_from(self)?,
            )?),
            Form::Components(agreed) => {
                let mut saving = Saving::new(agreed);
                self.put(&mut saving)?;
                Ok(saving.encode()?)
            }
        }
    }

    /// Reads the state of such a machine, in either form.
    ///
    /// # Errors
    /// When it is damaged, or of a version or a machine that this one is not.
    pub fn decode(blob: &[u8], spec: &MachineSpec) -> Result<Self, MachineError> {
        match codec::version(blob)? {
            v1::VERSION => {
                let one: MachineStateV1 = codec::decode(v1::VERSION, blob)?;
                Ok(one.into())
            }
            _ => Ok(Self::take(Saved::decode(blob)?, spec)?),
        }
    }

    fn put(self, to: &mut Saving<'_>) -> Result<(), SavedError> {
        let Self {
            run,
            clock,
            irqchips,
            pit,
            vcpus,
            devices,
        } = self;
        to.one(&run)?;
        to.one(&clock)?;
        to.one(&irqchips)?;
        to.one(&pit)?;
        for (index, vcpu) in vcpus.iter().enumerate() {
            to.numbered(index, vcpu)?;
        }
        devices.put(to)
    }

    fn take(mut from: Saved, spec: &MachineSpec) -> Result<Self, SavedError> {
        let vcpus = 0..spec.cpuid.len();
        let state = Self {
            run: from.one()?,
            clock: from.one()?,
            irqchips: from.one()?,
            pit: from.one()?,
            vcpus: vcpus
                .map(|index| from.numbered(index))
                .collect::<Result<_, _>>()?,
            devices: DevicesState::take(&mut from, spec)?,
        };
        from.finish()?;
        Ok(state)
    }
}
