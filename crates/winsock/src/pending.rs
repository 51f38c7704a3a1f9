//! Operations that have to wait: a specific request that the agent confirms.
//!
//! The BPF programs cannot call back, so a waiting operation asks again, soon at first and then less often. A blocking
//! call asks on its own thread. The overlapped ones share one thread, which lives while there are any.
//!
//! Every waiting operation has a `Claim` with a descriptor and the token of its own. So several requests may wait on
//! one socket, and a socket that is closed without this layer (`close` instead of `closesocket`) stays usable until the
//! answer is there. The claim ends before the end is reported to the program: from then on only the program holds the
//! socket.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use portkeep_core::wire::Grant;

use crate::{
    abi::Instance,
    claim::{Claim, FIRST_PAUSE, Place, instance},
    descriptor::is_socket,
    error, memory,
    overlapped::Completion,
    startup, wait,
};

// ---- blocking ---------------------------------------------------------------

/// The claim of a blocked call. Either that call takes it out, or the thread that cancels the call.
type Shared = Arc<Mutex<Option<Claim>>>;

static BLOCKED: Mutex<Vec<Shared>> = Mutex::new(Vec::new());

fn blocked() -> MutexGuard<'static, Vec<Shared>> {
    BLOCKED.lock().unwrap_or_else(PoisonError::into_inner)
}

fn claim_in(shared: &Shared) -> MutexGuard<'_, Option<Claim>> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Wait on the calling thread, until there is an answer, a signal, or `closesocket` or `CancelIoEx` from elsewhere.
pub(crate) fn block(claim: Claim) -> Result<Grant, i32> {
    let shared: Shared = Arc::new(Mutex::new(Some(claim)));
    blocked().push(shared.clone());
    // closesocket cancels after it has closed. So either it closed before the push, and this check sees it, or it finds
    // the claim.
    let closed = claim_in(&shared).as_ref().is_none_or(Claim::is_closed);
    let result = if closed { Err(error::WSA_OPERATION_ABORTED) } else { ask_again(&shared) };
    drop(claim_in(&shared).take());
    blocked().retain(|entry| !Arc::ptr_eq(entry, &shared));
    result
}

fn ask_again(shared: &Shared) -> Result<Grant, i32> {
    loop {
        let pause = {
            let mut slot = claim_in(shared);
            let claim = slot.as_mut().ok_or(error::WSA_OPERATION_ABORTED)?;
            if let Some(outcome) = claim.poll() {
                let claim = slot.take().ok_or(error::WSA_OPERATION_ABORTED)?;
                return outcome.map(|()| claim.keep());
            }
            libc::timespec { tv_sec: 0, tv_nsec: claim.pause.subsec_nanos().into() }
        };
        // SAFETY: a valid timespec in, nothing out.
        if unsafe { libc::nanosleep(&pause, std::ptr::null_mut()) } != 0 {
            return Err(error::WSAEINTR);
        }
    }
}

// ---- overlapped -------------------------------------------------------------

/// An overlapped operation under way.
#[derive(Debug)]
pub(crate) struct Operation {
    claim: Claim,
    /// Where the instance goes.
    pub(crate) out: usize,
    pub(crate) completion: Completion,
    /// The thread that started it: its end cancels the operation.
    pub(crate) thread: usize,
    due: Instant,
}

impl Operation {
    /// An operation of the calling thread.
    pub(crate) fn new(claim: Claim, out: usize, completion: Completion) -> Self {
        Self { claim, out, completion, thread: wait::this_thread(), due: Instant::now() + FIRST_PAUSE }
    }

    /// End the claim, which closes its descriptor. The caller then reports the end, after it has released the lock.
    fn settle(self, outcome: Result<(), i32>) -> Ended {
        let result = outcome.and_then(|()| {
            memory::write_late(self.out, instance(&self.claim.grant)).map_err(|_| error::WSAEFAULT)?;
            self.claim.keep();
            Ok(size_of::<Instance>() as u32)
        });
        Ended { completion: self.completion, result }
    }
}

/// An operation whose end only has to be reported.
struct Ended {
    completion: Completion,
    result: Result<u32, i32>,
}

#[derive(Default)]
struct Book {
    operations: Vec<Operation>,
    /// Being completed at this moment: no longer in `operations`, but not complete yet.
    finishing: Vec<usize>,
    /// The process whose thread completes them: a forked child has the list, but not the thread.
    keeper: Option<u32>,
}

static BOOK: Mutex<Option<Book>> = Mutex::new(None);
static CHANGED: Condvar = Condvar::new();

type Locked = MutexGuard<'static, Option<Book>>;

fn lock() -> Locked {
    let mut book = BOOK.lock().unwrap_or_else(PoisonError::into_inner);
    book.get_or_insert_default();
    book
}

fn within(book: &mut Locked) -> &mut Book {
    book.as_mut().expect("lock() fills it")
}

/// The end of a thread cancels the operations that it started.
struct Thread(usize);

impl Drop for Thread {
    fn drop(&mut self) {
        abort(|operation| operation.thread == self.0);
    }
}

thread_local! {
    static THREAD: Thread = Thread(wait::this_thread());
}

/// Hand an operation of the calling thread over to the thread that completes operations.
pub(crate) fn start(operation: Operation) -> Result<(), i32> {
    // Fails in a thread that is ending; `abort` follows then all the same, if it started anything before.
    let _ = THREAD.try_with(|_| ());
    let mut locked = lock();
    let book = within(&mut locked);
    let me = std::process::id();
    if book.keeper.is_some_and(|keeper| keeper != me) {
        // These are the parent's. The copies of its descriptors in this process close without a report.
        book.operations.clear();
        book.finishing.clear();
        book.keeper = None;
    }
    if book.keeper.is_none() {
        let spawned = std::thread::Builder::new().name("portkeep-winsock".into()).spawn(keep);
        spawned.map_err(|_| error::WSAENOBUFS)?;
        book.keeper = Some(me);
    }
    // closesocket cancels after it has closed. So either it closed before this check, which sees it, or it finds the
    // operation.
    if operation.claim.is_closed() {
        return Err(error::WSAENOTSOCK);
    }
    book.operations.push(operation);
    CHANGED.notify_all();
    Ok(())
}

fn keep() {
    // The program's signal handlers expect to run on the program's threads.
    // SAFETY: a full set made by sigfillset, for this thread alone.
    unsafe {
        let mut all = std::mem::zeroed();
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, std::ptr::null_mut());
    }
    let mut locked = lock();
    loop {
        let book = within(&mut locked);
        if book.operations.is_empty() {
            book.keeper = None;
            return;
        }
        let now = Instant::now();
        let mut done = None;
        for (index, operation) in book.operations.iter_mut().enumerate() {
            if operation.due > now {
                continue;
            }
            if let Some(outcome) = operation.claim.poll() {
                done = Some((index, outcome));
                break;
            }
            operation.due = now + operation.claim.pause;
        }
        if let Some((index, outcome)) = done {
            let operation = book.operations.swap_remove(index);
            locked = report(locked, vec![operation.settle(outcome)]);
            continue;
        }
        let next = book.operations.iter().map(|operation| operation.due).min().unwrap_or(now);
        let pause = next.saturating_duration_since(Instant::now());
        locked = CHANGED.wait_timeout(locked, pause).unwrap_or_else(PoisonError::into_inner).0;
    }
}

/// Report the end of operations that were taken off the list, without holding the lock: a report may call a routine of
/// the program.
fn report(mut locked: Locked, ended: Vec<Ended>) -> Locked {
    let addresses: Vec<usize> = ended.iter().map(|ended| ended.completion.overlapped).collect();
    within(&mut locked).finishing.extend(&addresses);
    drop(locked);
    for Ended { completion, result } in ended {
        completion.deliver(result);
    }
    locked = lock();
    // Remove only one entry of each address: the structure may be in use again, and its operation may end in another
    // thread.
    let finishing = &mut within(&mut locked).finishing;
    for address in addresses {
        if let Some(index) = finishing.iter().position(|other| *other == address) {
            finishing.swap_remove(index);
        }
    }
    CHANGED.notify_all();
    locked
}

/// Complete what `which` picks with WSA_OPERATION_ABORTED and give back what it had claimed. Returns how many.
pub(crate) fn abort(which: impl Fn(&Operation) -> bool) -> usize {
    let mut locked = lock();
    let (picked, rest) = std::mem::take(&mut within(&mut locked).operations).into_iter().partition(|o| which(o));
    within(&mut locked).operations = rest;
    let picked: Vec<Operation> = picked;
    let count = picked.len();
    if count > 0 {
        let ended = picked.into_iter().map(|operation| operation.settle(Err(error::WSA_OPERATION_ABORTED))).collect();
        drop(report(locked, ended));
    }
    count
}

/// As [`abort`], for everything on a socket, the blocking calls included.
pub(crate) fn abort_socket(place: Place) -> usize {
    let mut count = abort(|operation| operation.claim.is_on(place));
    for shared in blocked().iter() {
        let mut slot = claim_in(shared);
        if slot.as_ref().is_some_and(|claim| claim.is_on(place)) {
            drop(slot.take());
            count += 1;
        }
    }
    count
}

/// Undo one WSAStartup. The last one cancels what is pending.
pub(crate) fn cleanup() -> Result<(), i32> {
    if startup::uncount()? {
        abort(|_| true);
    }
    Ok(())
}

/// Sleep until the operation of this overlapped structure is complete.
pub(crate) fn wait_for(overlapped: usize) {
    let mut locked = lock();
    loop {
        let book = within(&mut locked);
        if !book.operations.iter().any(|o| o.completion.overlapped == overlapped)
            && !book.finishing.contains(&overlapped)
        {
            return;
        }
        locked = CHANGED.wait(locked).unwrap_or_else(PoisonError::into_inner);
    }
}

fn cancel(handle: usize, which: impl Fn(&Operation) -> bool, blocking_too: bool) -> i32 {
    crate::truth(|| {
        let place = Place::of(handle).filter(|_| is_socket(handle)).ok_or(error::WSA_INVALID_HANDLE)?;
        let count = if blocking_too {
            abort_socket(place)
        } else {
            abort(|operation| operation.claim.is_on(place) && which(operation))
        };
        if count == 0 { Err(error::ERROR_NOT_FOUND) } else { Ok(()) }
    })
}

/// `CancelIoEx`: from any thread, one operation or all of a socket.
#[unsafe(no_mangle)]
pub extern "C" fn CancelIoEx(handle: usize, overlapped: usize) -> i32 {
    cancel(handle, |operation| operation.completion.overlapped == overlapped, overlapped == 0)
}

/// `CancelIo`: the operations that the calling thread has started on a socket.
#[unsafe(no_mangle)]
pub extern "C" fn CancelIo(handle: usize) -> i32 {
    let me = wait::this_thread();
    cancel(handle, |operation| operation.thread == me, false)
}

/// `WSACleanup`.
#[unsafe(no_mangle)]
pub extern "C" fn WSACleanup() -> i32 {
    crate::status(cleanup)
}
