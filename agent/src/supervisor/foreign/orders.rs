//! What the thread that looks is asked to do: a state, not a queue, so that what a workload causes again and again takes no
//! more room for that.

use std::collections::BTreeSet;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::Place;

/// All that was asked for since it was taken last. Workloads are named by their numbers.
#[derive(Debug, Default)]
pub(super) struct Asked {
    /// What to look into from now on, at once.
    pub(super) places: Option<Vec<Place>>,
    /// Workloads that were met in the namespace with this inode, which the next look is to confirm.
    pub(super) known: BTreeSet<(u32, u64)>,
    /// Workloads to look into as soon as they may be.
    pub(super) hurried: BTreeSet<u32>,
    /// The same, and often for a while.
    pub(super) restless: BTreeSet<u32>,
}

impl Asked {
    fn is_nothing(&self) -> bool {
        let Self {
            places,
            known,
            hurried,
            restless,
        } = self;
        places.is_none() && known.is_empty() && hurried.is_empty() && restless.is_empty()
    }
}

/// Shared by those who ask and the thread that looks.
#[derive(Clone, Debug, Default)]
pub(super) struct Orders(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    asked: Mutex<Asked>,
    given: Condvar,
}

impl Orders {
    /// Asks for more.
    pub(super) fn give(&self, order: impl FnOnce(&mut Asked)) {
        order(&mut self.lock());
        self.0.given.notify_one();
    }

    /// Takes what there is, as soon as there is something, or nothing after `patience`.
    pub(super) fn take(&self, patience: Duration) -> Asked {
        let waited = self
            .0
            .given
            .wait_timeout_while(self.lock(), patience, |asked| asked.is_nothing());
        let (mut asked, _) = waited.unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut asked)
    }

    fn lock(&self) -> MutexGuard<'_, Asked> {
        self.0.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_again_and_again_is_there_once() {
        let orders = Orders::default();
        for _ in 0..1000 {
            orders.give(|asked| {
                asked.hurried.insert(7);
            });
            orders.give(|asked| {
                asked.restless.insert(7);
            });
        }
        let asked = orders.take(Duration::from_secs(60));
        assert_eq!((asked.hurried.len(), asked.restless.len()), (1, 1));
        assert!(orders.take(Duration::ZERO).is_nothing());
    }
}
