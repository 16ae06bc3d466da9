//! Keeps a slow event store away from those who read secrets.
//!
//! A request of the events directories is carried out by the thread that took it while no more than
//! half of the mount's threads do that; others go to a bounded pool. A watchdog answers `EIO` to
//! those that are not done at their deadline, wherever they are. Of writers who look at the clock
//! ([`Pace::Even`]) one request after the other is begun at one beat and answered at the next.
//!
//! Invariant: whatever the store does, half of the mount's threads are free for everything else, and
//! every request is answered, once. Danger: a request that was answered so may still be carried out;
//! as on any file system, an `EIO` says that nobody knows. Lock order: none, each is innermost.
#![forbid(unsafe_code)]

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Thread;
use std::time::{Duration, Instant};

use fuser::Errno;

use crate::events::Pace;

/// Threads of the pool.
const THREADS: usize = 4;
/// How often deadlines are looked at while somebody waits.
const TICK: Duration = Duration::from_millis(100);
/// What may wait for a thread of the pool: requests, and bytes in them.
const MAX_JOBS: usize = 4096;
const MAX_JOB_BYTES: usize = 32 << 20;
/// Of the pool's threads; the redactor's buffers are on the heap.
const STACK_BYTES: usize = 512 << 10;

/// Between two beats: longer than a request takes unless the disk is slow.
const BEAT: Duration = Duration::from_millis(25);

/// Even times.
#[derive(Clone, Copy)]
struct Beats(Instant);

impl Beats {
    /// Sleeps until the next one.
    fn wait(self) {
        let since = self.0.elapsed();
        let beats = since.as_nanos() / BEAT.as_nanos() + 1;
        let next = BEAT * u32::try_from(beats).unwrap_or(u32::MAX);
        std::thread::sleep(next.saturating_sub(since));
    }
}

/// A reply that can say no.
pub trait Refuse: Send + 'static {
    /// Answers with an error.
    fn refuse(self, errno: Errno);
}

trait Late: Send + Sync {
    fn refuse(&self);
}

/// A reply that whoever is first may have: who works on it, or the watchdog.
struct Shared<R>(Mutex<Option<R>>);

impl<R: Refuse> Late for Shared<R> {
    fn refuse(&self) {
        if let Some(reply) = lock(&self.0).take() {
            reply.refuse(Errno::EIO);
        }
    }
}

/// The reply to one request, to be given once.
pub struct Answer<R: Refuse> {
    own: Option<R>,
    shared: Option<(Arc<Shared<R>>, Arc<Watch>, u64)>,
    /// It is given at the next of these.
    beats: Option<Beats>,
}

impl<R: Refuse> Answer<R> {
    /// Of a request that nobody watches.
    pub fn direct(reply: R) -> Self {
        Self { own: Some(reply), shared: None, beats: None }
    }

    /// The reply, unless it was given.
    pub fn take(&mut self) -> Option<R> {
        if let Some(beats) = self.beats.take() {
            beats.wait();
        }
        match &self.shared {
            None => self.own.take(),
            Some((shared, watch, number)) => {
                lock(&watch.waiting).remove(number);
                lock(&shared.0).take()
            }
        }
    }

    /// Whether nobody has given it yet.
    fn is_open(&self) -> bool {
        self.shared.as_ref().is_none_or(|(shared, ..)| lock(&shared.0).is_some())
    }

    /// Answers with what came out.
    pub fn give<T>(mut self, outcome: Result<T, Errno>, answer: impl FnOnce(R, T)) {
        let Some(reply) = self.take() else { return };
        match outcome {
            Ok(value) => answer(reply, value),
            Err(errno) => reply.refuse(errno),
        }
    }
}

impl<R: Refuse> Drop for Answer<R> {
    fn drop(&mut self) {
        // A panic on the way, or a full queue.
        if let Some(reply) = self.take() {
            reply.refuse(Errno::EIO);
        }
    }
}

/// Until when, and for what.
type Waiting = (Instant, Arc<dyn Late>);

/// Who waits.
struct Watch {
    waiting: Mutex<HashMap<u64, Waiting>>,
    next: AtomicU64,
    is_awake: AtomicBool,
    watchdog: Mutex<Option<Thread>>,
}

impl Watch {
    fn run(&self) {
        loop {
            let now = Instant::now();
            let mut late = Vec::new();
            let is_idle = {
                let mut waiting = lock(&self.waiting);
                waiting.retain(|_, (until, reply)| {
                    let is_late = *until <= now;
                    if is_late {
                        late.push(reply.clone());
                    }
                    !is_late
                });
                if waiting.is_empty() {
                    self.is_awake.store(false, Ordering::SeqCst);
                }
                waiting.is_empty()
            };
            if !late.is_empty() {
                tracing::error!(count = late.len(), "the event store does not answer");
            }
            late.iter().for_each(|reply| reply.refuse());
            if is_idle {
                std::thread::park();
            } else {
                std::thread::park_timeout(TICK);
            }
        }
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// How a request is carried out that waits for a thread of the pool.
#[derive(Debug, Clone, Copy)]
pub struct Task {
    /// When it is answered.
    pub pace: Pace,
    /// Bytes in it.
    pub bytes: usize,
    /// Whatever was answered meanwhile, and however many wait: an end that comes once. There are no more
    /// of those than open files.
    pub is_due: bool,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<(usize, Job)>,
    bytes: usize,
}

struct Pool {
    queue: Mutex<Queue>,
    wake: Condvar,
}

impl Pool {
    fn run(&self) {
        loop {
            let mut queue = lock(&self.queue);
            let (bytes, job) = loop {
                match queue.jobs.pop_front() {
                    Some(job) => break job,
                    None => {
                        queue = self.wake.wait(queue).unwrap_or_else(PoisonError::into_inner);
                    }
                }
            };
            queue.bytes -= bytes;
            drop(queue);
            // Handlers catch their own panics; a thread of the pool is not lost to any other.
            if std::panic::catch_unwind(std::panic::AssertUnwindSafe(job)).is_err() {
                tracing::error!("a request of the events directories panicked");
            }
        }
    }

    /// Whether there was room; a job that is dropped refuses its request.
    fn put(&self, task: Task, job: Job) -> bool {
        let mut queue = lock(&self.queue);
        let bytes = task.bytes;
        let is_full = queue.jobs.len() >= MAX_JOBS || queue.bytes + bytes > MAX_JOB_BYTES;
        if is_full && !task.is_due {
            return false;
        }
        queue.bytes += bytes;
        queue.jobs.push_back((bytes, job));
        drop(queue);
        self.wake.notify_one();
        true
    }
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// See the module.
pub struct Gate {
    patience: Duration,
    /// Threads of the mount that may still enter.
    free: AtomicUsize,
    watch: Arc<Watch>,
    pool: Arc<Pool>,
    /// Of one thread.
    even: Arc<Pool>,
    beats: Beats,
}

/// A thread of the mount that carries out a request of the events directories.
pub struct Pass<'a>(&'a Gate);

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        self.0.free.fetch_add(1, Ordering::Release);
    }
}

impl Gate {
    /// For a mount with so many threads, and requests that may take so long.
    ///
    /// # Errors
    /// When no thread can be made.
    pub fn start(mount_threads: usize, patience: Duration) -> std::io::Result<Self> {
        let watch = Arc::new(Watch {
            waiting: Mutex::default(),
            next: AtomicU64::new(0),
            is_awake: AtomicBool::new(true),
            watchdog: Mutex::new(None),
        });
        let new_pool = || Arc::new(Pool { queue: Mutex::default(), wake: Condvar::new() });
        let (pool, even) = (new_pool(), new_pool());
        let build = || std::thread::Builder::new().stack_size(STACK_BYTES);
        let watched = watch.clone();
        let watchdog = build().name("watchdog".into()).spawn(move || watched.run())?;
        *lock(&watch.watchdog) = Some(watchdog.thread().clone());
        for pool in std::iter::repeat_n(&pool, THREADS).chain([&even]) {
            let pool = pool.clone();
            build().name("events".into()).spawn(move || pool.run())?;
        }
        let free = AtomicUsize::new(mount_threads / 2);
        Ok(Self { patience, free, watch, pool, even, beats: Beats(Instant::now()) })
    }

    /// Watches over a request from now on.
    pub fn watch<R: Refuse>(&self, reply: R) -> Answer<R> {
        let shared = Arc::new(Shared(Mutex::new(Some(reply))));
        let number = self.watch.next.fetch_add(1, Ordering::Relaxed);
        let until = Instant::now() + self.patience;
        lock(&self.watch.waiting).insert(number, (until, shared.clone()));
        if !self.watch.is_awake.swap(true, Ordering::SeqCst)
            && let Some(watchdog) = &*lock(&self.watch.watchdog)
        {
            watchdog.unpark();
        }
        Answer { own: None, shared: Some((shared, self.watch.clone(), number)), beats: None }
    }

    /// Whether this thread of the mount may carry out the request itself.
    pub fn pass(&self, pace: Pace) -> Option<Pass<'_>> {
        if pace == Pace::Even {
            return None;
        }
        let less = |free: usize| free.checked_sub(1);
        let taken = self.free.fetch_update(Ordering::AcqRel, Ordering::Relaxed, less);
        taken.is_ok().then(|| Pass(self))
    }

    /// Leaves a request to the pool.
    pub fn leave<R: Refuse>(
        &self,
        mut answer: Answer<R>,
        task: Task,
        work: impl FnOnce(Answer<R>) + Send + 'static,
    ) {
        let (pool, beats) = match task.pace {
            Pace::Free => (&self.pool, None),
            Pace::Even => (&self.even, Some(self.beats)),
        };
        let job = move || {
            if let Some(beats) = beats {
                beats.wait();
            }
            // One that was refused meanwhile is not begun.
            if answer.is_open() || task.is_due {
                answer.beats = beats;
                work(answer);
            }
        };
        if !pool.put(task, Box::new(job)) {
            tracing::error!("too many requests wait for the event store");
        }
    }
}

impl std::fmt::Debug for Gate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gate").field("patience", &self.patience).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Sender, channel};

    struct Told(Sender<&'static str>);

    impl Refuse for Told {
        fn refuse(self, _: Errno) {
            self.0.send("refused").unwrap();
        }
    }

    fn task(bytes: usize) -> Task {
        Task { pace: Pace::Free, bytes, is_due: false }
    }

    #[test]
    fn a_request_that_hangs_is_refused_once_and_others_go_on() {
        // Long enough for those that do not hang, however busy the machine is.
        let gate = Gate::start(4, Duration::from_secs(2)).unwrap();
        let (tell, told) = channel();
        let (release, hang) = channel::<()>();
        let hang = Arc::new(Mutex::new(hang));
        for _ in 0..THREADS + 3 {
            let hang = hang.clone();
            gate.leave(gate.watch(Told(tell.clone())), task(1), move |answer| {
                let _released = lock(&hang).recv();
                answer.give(Ok(()), |told, ()| told.0.send("done").unwrap());
            });
        }
        for _ in 0..THREADS + 3 {
            assert_eq!(told.recv().unwrap(), "refused");
        }
        // The mount's own threads are not taken by those.
        let (first, second) = (gate.pass(Pace::Free), gate.pass(Pace::Free));
        assert!(first.is_some() && second.is_some());
        assert!(gate.pass(Pace::Free).is_none() && gate.pass(Pace::Free).is_none());
        drop((first, second));
        gate.watch(Told(tell.clone())).give(Ok(()), |told, ()| told.0.send("at once").unwrap());
        assert_eq!(told.recv().unwrap(), "at once");
        for _ in 0..THREADS {
            release.send(()).unwrap();
        }
        drop(release);
        gate.leave(gate.watch(Told(tell)), task(1), |answer| {
            answer.give(Ok(()), |told, ()| told.0.send("after").unwrap());
        });
        assert_eq!(told.recv().unwrap(), "after");
        assert!(told.recv_timeout(Duration::from_millis(150)).is_err(), "answered twice");
    }

    #[test]
    fn what_is_due_is_carried_out_whatever_was_answered_and_however_many_wait() {
        let gate = Gate::start(4, Duration::from_millis(1)).unwrap();
        let (release, hang) = channel::<()>();
        let hang = Arc::new(Mutex::new(hang));
        let (tell, told) = channel();
        for _ in 0..THREADS {
            let hang = hang.clone();
            let answer = gate.watch(Told(tell.clone()));
            let task = Task { is_due: true, ..task(0) };
            gate.leave(answer, task, move |_| {
                let _released = lock(&hang).recv();
            });
        }
        let begun = Arc::new(AtomicUsize::new(0));
        let (done, all_done) = channel::<()>();
        for n in 0..MAX_JOBS + 10 {
            let (begun, done) = (begun.clone(), done.clone());
            let is_due = n % 2 == 1 || n >= MAX_JOBS;
            gate.leave(gate.watch(Told(tell.clone())), Task { is_due, ..task(0) }, move |_| {
                begun.fetch_add(1, Ordering::Relaxed);
                drop(done);
            });
        }
        drop((tell, done));
        let all = THREADS + MAX_JOBS + 10;
        assert_eq!(told.iter().take(all).filter(|told| *told == "refused").count(), all);
        drop(release);
        assert!(all_done.recv().is_err(), "all that was due is over");
        assert_eq!(begun.load(Ordering::Relaxed), MAX_JOBS / 2 + 10);
    }

    #[test]
    fn what_does_not_fit_into_the_queue_is_refused_at_once() {
        let gate = Gate::start(1, Duration::from_secs(60)).unwrap();
        assert!(gate.pass(Pace::Free).is_none(), "the only thread is for secrets");
        let (tell, told) = channel();
        gate.leave(gate.watch(Told(tell)), task(MAX_JOB_BYTES + 1), drop);
        assert_eq!(told.recv().unwrap(), "refused");
    }

    #[test]
    fn at_an_even_pace_each_is_begun_at_one_beat_and_answered_at_a_later_one() {
        let gate = Gate::start(4, Duration::from_secs(60)).unwrap();
        assert!(gate.pass(Pace::Even).is_none() && gate.pass(Pace::Free).is_some());
        let beats = gate.beats;
        let beat = move || beats.0.elapsed().as_nanos() / BEAT.as_nanos();
        let (tell, told) = channel();
        for took in [0, 1, 7] {
            let tell = tell.clone();
            let answer = gate.watch(Told(channel().0));
            gate.leave(answer, Task { pace: Pace::Even, ..task(1) }, move |answer| {
                let begun = beat();
                std::thread::sleep(Duration::from_millis(took));
                answer.give(Ok(()), |_, ()| tell.send((begun, beat())).unwrap());
            });
        }
        let mut before = 0;
        for _ in 0..3 {
            let (begun, answered) = told.recv().unwrap();
            assert!(before < begun && begun < answered, "{before} {begun} {answered}");
            before = answered;
        }
    }
}
