//! A store in memory that behaves like the file: for tests, with failures on demand.
#![forbid(unsafe_code)]

use std::sync::{Mutex, PoisonError};

use super::{Change, Error, Image, Store};

#[derive(Debug, Default)]
struct Inner {
    image: Option<Image>,
    fail_next: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub struct MemoryStore {
    inner: Mutex<Inner>,
}

impl MemoryStore {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// One that holds `image`.
    pub fn with(image: Image) -> Self {
        Self { inner: Mutex::new(Inner { image: Some(image), fail_next: false }) }
    }

    /// What is stored.
    pub fn image(&self) -> Option<Image> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).image.clone()
    }

    /// Lets the next commit fail as a full disk does.
    pub fn fail_next(&self) {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).fail_next = true;
    }
}

impl Store for std::sync::Arc<MemoryStore> {
    fn create(&self, image: &Image) -> Result<(), Error> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.image.is_some() {
            return Err(Error::Exists);
        }
        inner.image = Some(image.clone());
        Ok(())
    }

    fn load(&self) -> Result<Image, Error> {
        self.image().ok_or(Error::Missing)
    }

    fn commit(&self, expected: u64, change: &Change) -> Result<(), Error> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if std::mem::take(&mut inner.fail_next) {
            return Err(Error::Io { what: "no space left on device".into() });
        }
        let image = inner.image.as_mut().ok_or(Error::Missing)?;
        if image.revision != expected {
            return Err(Error::Conflict { expected, found: image.revision });
        }
        image.format = change.format;
        image.revision = change.revision;
        image.seal.clone_from(&change.seal);
        if let Some(slots) = &change.slots {
            image.slots.clone_from(slots);
        }
        for (kind, id, bytes) in &change.records {
            image.records.retain(|(k, i, _)| (k, i) != (kind, id));
            if let Some(bytes) = bytes {
                image.records.push((*kind, *id, bytes.clone()));
            }
        }
        Ok(())
    }
}
