//! The data threads: one runtime each, connections handed out in turn.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::LocalSet;
use tokio::time::Instant;

use crate::identity::WorkloadName;
use crate::net::listener::Accepted;
use crate::proxy::{self, DataThread, Figures, Shared};

/// What a data thread is told.
enum Order {
    /// Serve this connection.
    Serve(WorkloadName, Accepted),
    /// The policy has changed.
    Redecide,
    /// Close what is idle, end when the rest has ended or the time has come.
    Drain(Duration),
}

/// All data threads.
pub(super) struct DataThreads {
    threads: Vec<Thread>,
    next: Arc<AtomicUsize>,
}

struct Thread {
    orders: UnboundedSender<Order>,
    figures: Arc<Figures>,
    handle: Option<JoinHandle<()>>,
}

/// How often a thread says that it runs.
const BEAT: Duration = Duration::from_millis(200);

impl DataThreads {
    pub(super) fn start(count: usize, shared: &Arc<Shared>) -> std::io::Result<Self> {
        let threads = (0..count).map(|number| Thread::start(number, Arc::clone(shared)));
        Ok(Self {
            threads: threads.collect::<Result<_, _>>()?,
            next: Arc::default(),
        })
    }

    /// Hands a workload's connections to the threads in turn.
    pub(super) fn hand_out(&self, workload: WorkloadName) -> impl FnMut(Accepted) + Send + 'static {
        let orders: Vec<_> = self.threads.iter().map(|thread| thread.orders.clone()).collect();
        let next = Arc::clone(&self.next);
        move |accepted| {
            let turn = next.fetch_add(1, Ordering::Relaxed) % orders.len();
            if let Some(thread) = orders.get(turn)
                && thread.send(Order::Serve(workload.clone(), accepted)).is_err()
            {
                tracing::error!("a data thread is gone; its connection is closed");
            }
        }
    }

    pub(super) fn redecide(&self) {
        self.tell(|| Order::Redecide);
    }

    pub(super) fn sum(&self, figure: impl Fn(&Figures) -> u64) -> u64 {
        self.threads.iter().map(|thread| figure(&thread.figures)).sum()
    }

    /// When the thread that has been silent for the longest last said that it runs.
    pub(super) fn oldest_sign_of_life(&self) -> u64 {
        self.threads
            .iter()
            .map(|thread| thread.figures.last_alive())
            .min()
            .unwrap_or(0)
    }

    pub(super) async fn drain(&mut self, deadline: Duration) {
        self.tell(|| Order::Drain(deadline));
        for thread in &mut self.threads {
            let Some(handle) = thread.handle.take() else {
                continue;
            };
            match tokio::task::spawn_blocking(move || handle.join()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => tracing::error!("a data thread did not end by itself"),
            }
        }
    }

    fn tell(&self, order: impl Fn() -> Order) {
        for thread in &self.threads {
            if thread.orders.send(order()).is_err() {
                tracing::error!("a data thread is gone");
            }
        }
    }
}

impl Thread {
    fn start(number: usize, shared: Arc<Shared>) -> std::io::Result<Self> {
        let (orders, queue) = unbounded_channel();
        let figures = Arc::new(Figures::default());
        // Until its first beat the thread counts as alive from now on.
        figures.alive(monotonic());
        let counted = Arc::clone(&figures);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let handle = std::thread::Builder::new()
            .name(format!("data-{number}"))
            .spawn(move || {
                LocalSet::new().block_on(&runtime, serve(shared, counted, queue));
            })?;
        Ok(Self {
            orders,
            figures,
            handle: Some(handle),
        })
    }
}

async fn serve(shared: Arc<Shared>, figures: Arc<Figures>, mut orders: UnboundedReceiver<Order>) {
    let thread = match DataThread::new(shared, Arc::clone(&figures)) {
        Ok(thread) => thread,
        Err(error) => {
            tracing::error!(%error, "a data thread can't start");
            return;
        }
    };
    let mut beat = tokio::time::interval(BEAT);
    let mut sweep = tokio::time::interval(proxy::SWEEP);
    let deadline = loop {
        tokio::select! {
            order = orders.recv() => match order {
                Some(Order::Serve(workload, accepted)) => {
                    tokio::task::spawn_local(proxy::connection::serve(Rc::clone(&thread), workload, accepted));
                }
                Some(Order::Redecide) => thread.redecide(),
                Some(Order::Drain(deadline)) => break deadline,
                None => break Duration::ZERO,
            },
            _ = beat.tick() => figures.alive(monotonic()),
            _ = sweep.tick() => thread.sweep(),
        }
    };
    drain(&thread, Instant::now() + deadline).await;
}

/// Idle connections are closed, calls may end until the deadline, what is left then is cut off.
async fn drain(thread: &DataThread, deadline: Instant) {
    thread.drain();
    let mut look = tokio::time::interval(Duration::from_millis(20));
    while thread.live_calls() > 0 && Instant::now() < deadline {
        look.tick().await;
    }
    thread.cut_off();
    // One turn for the tasks that were woken to write their records.
    tokio::time::timeout(Duration::from_millis(500), async {
        while thread.live_calls() > 0 {
            look.tick().await;
        }
    })
    .await
    .unwrap_or_else(|_elapsed| tracing::warn!(calls = thread.live_calls(), "calls were cut off"));
}

/// CLOCK_MONOTONIC in nanoseconds, the clock that the kernel side compares with. Zero, which counts as stale, if
/// it can't be read.
fn monotonic() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .ok()
        .and_then(|now| u64::try_from(now.tv_sec() * 1_000_000_000 + now.tv_nsec()).ok())
        .unwrap_or(0)
}
