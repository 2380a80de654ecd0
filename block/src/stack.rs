//! A disk as a stack of layers.

use std::fmt;
use std::sync::Arc;

use crate::tracker::ChangeMap;
use crate::{BlockDevice, Layer, RingDisk, Uring};

/// An image and the layers over it, which are one block device.
#[derive(Clone)]
pub struct Stack {
    device: Arc<dyn BlockDevice>,
    /// What it consists of, the image first.
    names: Vec<&'static str>,
    ring: Ring,
}

/// What of a stack a ring carries out.
#[derive(Clone)]
enum Ring {
    /// Not all of it.
    None,
    /// All: it is the image.
    Image(Arc<RingDisk>),
    /// All: it is the image, and its changes are marked.
    Tracked(Arc<RingDisk>, Arc<ChangeMap>),
}

impl Stack {
    /// A raw image alone, with its ring.
    pub fn over_ring(ring: Arc<RingDisk>) -> Self {
        Self {
            device: ring.image().clone(),
            names: vec!["raw"],
            ring: Ring::Image(ring),
        }
    }

    /// The backend by the ring of its image; nothing if that has none, or there are layers that no ring can do.
    pub fn by_ring(&self) -> Option<Uring> {
        match &self.ring {
            Ring::None => None,
            Ring::Image(ring) => Some(Uring::new(ring.clone())),
            Ring::Tracked(ring, map) => Some(Uring::tracked(ring.clone(), map.clone())),
        }
    }

    /// An image alone; `format` says what it is where the stack is told, such as `raw`.
    pub fn over(image: Arc<dyn BlockDevice>, format: &'static str) -> Self {
        Self {
            device: image,
            names: vec![format],
            ring: Ring::None,
        }
    }

    /// Lays a layer over what is there; the layer, for whoever steers it.
    ///
    /// # Errors
    /// When the layer cannot be made; the stack is as before.
    pub fn try_lay<L: Layer + 'static, E>(
        &mut self,
        make: impl FnOnce(Arc<dyn BlockDevice>) -> Result<L, E>,
    ) -> Result<Arc<L>, E> {
        let layer = Arc::new(make(Arc::clone(&self.device))?);
        self.ring = match (&self.ring, layer.marks()) {
            (Ring::Image(ring), Some(map)) => Ring::Tracked(ring.clone(), map.clone()),
            _ => Ring::None,
        };
        self.device = layer.clone();
        self.names.push(L::NAME);
        Ok(layer)
    }

    /// As [`Stack::try_lay`], of a layer that can always be made.
    pub fn lay<L: Layer + 'static>(
        &mut self,
        make: impl FnOnce(Arc<dyn BlockDevice>) -> L,
    ) -> Arc<L> {
        let made = self.try_lay(|device| Ok::<_, std::convert::Infallible>(make(device)));
        match made {
            Ok(layer) => layer,
            Err(never) => match never {},
        }
    }

    /// Whether it is the very same, layers included.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.device, &other.device)
    }

    /// All of it.
    pub fn device(&self) -> Arc<dyn BlockDevice> {
        Arc::clone(&self.device)
    }

    /// The names of its layers, the uppermost first, and of the format of its image.
    pub fn names(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.names.iter().rev().copied()
    }
}

/// As `throttle > tracker > raw /srv/web.raw`.
impl fmt::Display for Stack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (above, name) in self.names().enumerate() {
            let separator = if above == 0 { "" } else { " > " };
            write!(f, "{separator}{name}")?;
        }
        write!(f, " {}", self.device.identity())
    }
}

impl fmt::Debug for Stack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Stack({self})")
    }
}
