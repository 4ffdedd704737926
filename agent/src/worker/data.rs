//! The data threads: one runtime each. Each accepts for some workloads, and hands on what another has more room for.

use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::LocalSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::identity::WorkloadName;
use crate::net::listener::{self, Accepted, Quota};
use crate::proxy::connection::{self, Handed};
use crate::proxy::{self, Arriving, Carried, DataThread, Figures, Shared};

/// What a data thread is told.
enum Order {
    /// Serve this connection.
    Serve(Handed),
    /// The policy has changed.
    Redecide,
    /// The workload has left this network namespace.
    Forget(WorkloadName, u64),
    /// End when all connections have ended or the time has come; told again, the earlier time counts.
    Drain(Drain),
}

/// When to have ended.
#[derive(Clone, Copy)]
struct Drain {
    deadline: Instant,
    idle_until: Instant,
}

/// All data threads.
pub(super) struct DataThreads {
    threads: Vec<Thread>,
    /// Which of them accepts for the next listener of each family: a workload has one of both.
    next: [AtomicUsize; 2],
    accepting: TaskTracker,
}

struct Thread {
    orders: UnboundedSender<Order>,
    figures: Arc<Figures>,
    runtime: Handle,
    handle: Option<JoinHandle<()>>,
}

/// How often a thread says that it runs.
const BEAT: Duration = Duration::from_millis(200);
/// How long a drain waits for threads to stop accepting, which is a matter of a turn each unless one hangs.
const LAST_ACCEPTED: Duration = Duration::from_secs(1);

impl DataThreads {
    pub(super) fn start(count: usize, shared: &Arc<Shared>) -> std::io::Result<Self> {
        let threads = (0..count).map(|number| Thread::start(number, Arc::clone(shared)));
        Ok(Self {
            threads: threads.collect::<Result<_, _>>()?,
            next: Default::default(),
            accepting: TaskTracker::new(),
        })
    }

    /// Accepts a workload's connections until `stop` is cancelled. The thread that does it serves them itself unless another
    /// has fewer: what is handed on has to wake that one.
    ///
    /// # Errors
    /// If the listener can't be waited for.
    pub(super) fn accept(
        &self,
        workload: WorkloadName,
        listener: std::net::TcpListener,
        quota: Quota,
        stop: CancellationToken,
        flood: impl Fn() + Send + 'static,
    ) -> std::io::Result<()> {
        let family = usize::from(listener.local_addr()?.is_ipv6());
        let turn = self.next[family].fetch_add(1, Ordering::Relaxed) % self.threads.len();
        let runtime = &self.threads[turn].runtime;
        let listener = {
            let _entered = runtime.enter();
            TcpListener::from_std(listener)?
        };
        let deliver = self.deliver(workload, turn);
        let accepting = listener::accept(listener, quota, stop.cancelled_owned(), deliver, flood);
        self.accepting.spawn_on(accepting, runtime);
        Ok(())
    }

    /// Hands each connection to the thread with the fewest; among equals to `own`.
    fn deliver(&self, listener: WorkloadName, own: usize) -> impl FnMut(Accepted) + Send + 'static {
        let ends = |thread: &Thread| (thread.orders.clone(), Arc::clone(&thread.figures));
        let mut ends: Vec<_> = self.threads.iter().map(ends).collect();
        ends.rotate_left(own);
        move |mut accepted| {
            // The first of equals.
            let fewest = ends
                .iter()
                .enumerate()
                .min_by_key(|(_, (_, figures))| figures.connections());
            let Some((at, (orders, figures))) = fewest else {
                return;
            };
            if at > 0 {
                accepted.stream = match accepted.stream.leave() {
                    Ok(stream) => stream,
                    Err(error) => {
                        tracing::error!(%error, "a connection can't be handed on; it is closed");
                        return;
                    }
                };
            }
            let handed = Handed {
                listener: listener.clone(),
                accepted,
                arriving: Arriving::at(figures),
                carried: Carried::by(figures),
            };
            if orders.send(Order::Serve(handed)).is_err() {
                tracing::error!("a data thread is gone; its connection is closed");
            }
        }
    }

    /// Waits until nothing is accepted any more, once all that stops it was cancelled: threads that drain may end.
    pub(super) async fn accepted_all(&self) {
        self.accepting.close();
        if tokio::time::timeout(LAST_ACCEPTED, self.accepting.wait())
            .await
            .is_err()
        {
            tracing::error!("a data thread does not stop accepting");
        }
    }

    pub(super) fn redecide(&self) {
        self.tell(|| Order::Redecide);
    }

    /// Lets go of connections that were kept for the workload in this network namespace.
    pub(super) fn forget(&self, workload: &WorkloadName, netns: u64) {
        self.tell(|| Order::Forget(workload.clone(), netns));
    }

    pub(super) fn sum(&self, figure: impl Fn(&Figures) -> u64) -> u64 {
        self.threads.iter().map(|thread| figure(&thread.figures)).sum()
    }

    /// How many connections are on their way in.
    pub(super) fn arriving(&self) -> usize {
        self.threads.iter().map(|thread| thread.figures.arriving()).sum()
    }

    /// When the thread that has been silent for the longest last said that it runs.
    pub(super) fn oldest_sign_of_life(&self) -> u64 {
        self.threads
            .iter()
            .map(|thread| thread.figures.last_alive())
            .min()
            .unwrap_or(0)
    }

    /// Lets connections end; done when all threads have.
    pub(super) fn drain(&mut self, deadline: Duration, idle: Duration) -> impl Future<Output = ()> + use<> {
        self.drain_sooner(deadline, idle);
        let handles: Vec<_> = self
            .threads
            .iter_mut()
            .filter_map(|one| one.handle.take())
            .collect();
        async move {
            for handle in handles {
                match tokio::task::spawn_blocking(move || handle.join()).await {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) | Err(_) => tracing::error!("a data thread did not end by itself"),
                }
            }
        }
    }

    /// As [`DataThreads::drain`], for threads that drain already.
    pub(super) fn drain_sooner(&self, deadline: Duration, idle: Duration) {
        let now = Instant::now();
        let drain = Drain {
            deadline: now + deadline,
            idle_until: now + idle.min(deadline),
        };
        for thread in &self.threads {
            // A thread that has ended has drained.
            drop(thread.orders.send(Order::Drain(drain)));
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
        let control = runtime.handle().clone();
        let handle = std::thread::Builder::new()
            .name(format!("data-{number}"))
            .spawn(move || {
                LocalSet::new().block_on(&runtime, serve(shared, counted, queue));
            })?;
        Ok(Self {
            orders,
            figures,
            runtime: control,
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
    let drain = loop {
        tokio::select! {
            order = orders.recv() => if let Some(drain) = obey(&thread, order) {
                break drain;
            },
            _ = beat.tick() => figures.alive(monotonic()),
            _ = sweep.tick() => thread.sweep(),
        }
    };
    drained(&thread, drain, &mut orders).await;
}

/// Does what is ordered; gives when to have ended if that is the order. Nobody left to order means now.
fn obey(thread: &Rc<DataThread>, order: Option<Order>) -> Option<Drain> {
    match order {
        Some(Order::Serve(handed)) => {
            tokio::task::spawn_local(connection::serve(Rc::clone(thread), handed));
            None
        }
        Some(Order::Redecide) => {
            thread.redecide();
            None
        }
        Some(Order::Forget(workload, netns)) => {
            thread.forget(&workload, netns);
            None
        }
        Some(Order::Drain(drain)) => Some(drain),
        None => Some(Drain {
            deadline: Instant::now(),
            idle_until: Instant::now(),
        }),
    }
}

/// Connections may end until the deadline, what is left then is cut off. Each connection that was accepted is served,
/// in whatever phase it is.
async fn drained(thread: &Rc<DataThread>, mut drain: Drain, orders: &mut UnboundedReceiver<Order>) {
    thread.drain();
    let mut look = tokio::time::interval(Duration::from_millis(20));
    let mut ordered = true;
    while !thread.is_quiet() && Instant::now() < drain.deadline {
        tokio::select! {
            order = orders.recv(), if ordered => {
                ordered = order.is_some();
                if let Some(sooner) = obey(thread, order) {
                    drain.deadline = drain.deadline.min(sooner.deadline);
                    drain.idle_until = drain.idle_until.min(sooner.idle_until);
                }
            }
            _ = look.tick() => if Instant::now() >= drain.idle_until {
                thread.close_idle();
            }
        }
    }
    thread.close_idle();
    thread.cut_off();
    // A turn for the tasks that were woken to write their records and say goodbye.
    tokio::time::timeout(Duration::from_millis(500), async {
        while !thread.is_quiet() {
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
