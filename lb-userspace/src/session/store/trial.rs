//! A store for tests, which does not always do as it is told.

use super::{Answer, Cursor, Given, SessionStore, Slice, StoreError, StoreState, Swept};
use crate::session::{Owner, Record};
use futures::FutureExt;
use lb_common::token::SessionId;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::Semaphore;

/// A store whose writes can be made to fail, or to wait.
pub(crate) struct Trial {
    inner: Arc<dyn SessionStore>,
    pub(crate) fail_saves: AtomicBool,
    pub(crate) no_space: AtomicBool,
    pub(crate) unavailable: AtomicBool,
    pub(crate) holds: AtomicBool,
    /// Saves wait for a permit while this is on.
    pub(crate) hold: AtomicBool,
    pub(crate) held: Semaphore,
    pub(crate) arrived: Semaphore,
}

impl Trial {
    pub(crate) fn new(inner: Arc<dyn SessionStore>) -> Self {
        Self {
            inner,
            fail_saves: AtomicBool::new(false),
            no_space: AtomicBool::new(false),
            unavailable: AtomicBool::new(false),
            holds: AtomicBool::new(true),
            hold: AtomicBool::new(false),
            held: Semaphore::new(0),
            arrived: Semaphore::new(0),
        }
    }

    fn refused<T>(&self) -> Option<Result<T, StoreError>> {
        if self.unavailable.load(Ordering::SeqCst) {
            return Some(Err(StoreError::Unavailable { store: "trial".into(), reason: "made to".into() }));
        }
        if self.no_space.load(Ordering::SeqCst) {
            return Some(Err(StoreError::NoSpace { path: "/full".into(), free: 0, reserve: 1 }));
        }
        None
    }
}

impl SessionStore for Trial {
    fn load(&self, id: SessionId) -> Answer<'_, Option<Record>> {
        match self.unavailable.load(Ordering::SeqCst) {
            true => async { self.refused().expect("it is unavailable") }.boxed(),
            false => self.inner.load(id),
        }
    }
    fn holds(&self) -> bool {
        self.holds.load(Ordering::SeqCst)
    }
    fn save<'a>(
        &'a self,
        id: SessionId,
        record: &Record,
        expected: Option<u64>,
    ) -> Answer<'a, Option<Owner>> {
        let record = record.clone();
        async move {
            if self.hold.load(Ordering::SeqCst) {
                self.arrived.add_permits(1);
                self.held.acquire().await.unwrap().forget();
            }
            if let Some(refused) = self.refused() {
                return refused;
            }
            let saved = self.inner.save(id, &record, expected).await;
            if self.fail_saves.load(Ordering::SeqCst) {
                return Err(StoreError::Failed("made to fail after it was done".into()));
            }
            saved
        }
        .boxed()
    }
    fn claim(&self, id: SessionId, expected: u64, owner: Owner, expires: u64) -> Answer<'_, Owner> {
        match self.refused() {
            Some(refused) => async move { refused }.boxed(),
            None => self.inner.claim(id, expected, owner, expires),
        }
    }
    fn delete(&self, id: SessionId, expected: u64) -> Answer<'_, ()> {
        self.inner.delete(id, expected)
    }
    fn sweep(&self, now: u64, after: Option<SessionId>, slice: usize) -> Answer<'_, Swept> {
        self.inner.sweep(now, after, slice)
    }
    fn count(&self) -> Answer<'_, u64> {
        self.inner.count()
    }
    fn count_of(&self, service: u16) -> Option<u64> {
        self.inner.count_of(service)
    }
    fn next_epoch(&self, slot: u16) -> Answer<'_, u32> {
        self.inner.next_epoch(slot)
    }
    fn service_id(&self, service: &str) -> Answer<'_, u16> {
        self.inner.service_id(service)
    }
    fn slot(&self, service: &str, backend: &str) -> Answer<'_, u16> {
        self.inner.slot(service, backend)
    }
    fn slots(&self) -> Answer<'_, Vec<(String, String, u16)>> {
        self.inner.slots()
    }
    fn given(&self) -> Answer<'_, Given> {
        self.inner.given()
    }
    fn adopt(&self, given: Given) -> Answer<'_, ()> {
        self.inner.adopt(given)
    }
    fn forget_slot(&self, service: &str, backend: &str) -> Answer<'_, ()> {
        self.inner.forget_slot(service, backend)
    }
    fn forget_service(&self, service: &str) -> Answer<'_, ()> {
        self.inner.forget_service(service)
    }
    fn scan(&self, from: Option<Cursor>, slice: usize) -> Answer<'_, Slice> {
        self.inner.scan(from, slice)
    }
    fn state(&self) -> StoreState {
        self.inner.state()
    }
}
