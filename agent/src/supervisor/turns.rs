//! Turns for work that may get stuck: on an executable whose file system never answers, on a user database.
//!
//! A workload has a few turns and keeps those that are stuck, so it holds up itself alone. All work together is
//! bounded too, but what takes too long no longer counts there.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;

/// Work of all workloads at once; the rest waits.
const AT_ONCE: usize = 16;
/// Work of one workload at once.
const EACH: usize = 4;

/// Who may work now.
#[derive(Debug)]
pub(super) struct Turns {
    all: Semaphore,
    each: Mutex<HashMap<u32, Arc<Semaphore>>>,
    patience: Duration,
}

/// The work took too long or broke off.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct Late;

impl Turns {
    /// Work that takes longer than `patience`, its wait included, is late.
    pub(super) fn new(patience: Duration) -> Self {
        Self {
            all: Semaphore::new(AT_ONCE),
            each: Mutex::default(),
            patience,
        }
    }

    /// Does `work`, which may block, on a thread of its own in a turn of the workload of this number. Numbers must
    /// be few: each is remembered.
    ///
    /// # Errors
    /// If it is late. It may go on then, in the workload's turn.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        workload: u32,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Late> {
        let own = self.of(workload);
        let done = async {
            let turn = own.acquire_owned().await.map_err(|_closed| Late)?;
            let _counted = self.all.acquire().await.map_err(|_closed| Late)?;
            let working = tokio::task::spawn_blocking(move || {
                let _turn = turn;
                work()
            });
            working.await.map_err(|_panicked| Late)
        };
        tokio::time::timeout(self.patience, done)
            .await
            .unwrap_or(Err(Late))
    }

    fn of(&self, workload: u32) -> Arc<Semaphore> {
        let mut each = self.each.lock().unwrap_or_else(PoisonError::into_inner);
        let own = each
            .entry(workload)
            .or_insert_with(|| Arc::new(Semaphore::new(EACH)));
        Arc::clone(own)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn a_workload_whose_questions_are_stuck_holds_up_no_other() {
        let turns = Arc::new(Turns::new(Duration::from_millis(500)));
        let mut stuck = Vec::new();
        let mut gates = Vec::new();
        for _ in 0..2 * AT_ONCE {
            let (gate, closed) = mpsc::channel::<()>();
            let turns = Arc::clone(&turns);
            stuck.push(tokio::spawn(
                async move { turns.run(1, move || closed.recv()).await },
            ));
            gates.push(gate);
        }
        assert_eq!(turns.run(2, || "served").await, Ok("served"));
        for one in stuck {
            assert_eq!(one.await.unwrap(), Err(Late));
        }
        assert_eq!(turns.run(2, || "served").await, Ok("served"));
        assert_eq!(turns.run(1, || ()).await, Err(Late), "its turns are still taken");
        drop(gates);
        while turns.run(1, || ()).await.is_err() {}
    }
}
