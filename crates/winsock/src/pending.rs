//! Operations that have to wait: a specific request that the agent confirms.
//!
//! The kernel part has no way to call back, so whoever waits asks again, soon
//! at first and then less often. A blocking call asks on its own thread; the
//! overlapped ones share one thread, which lives while there are any.
//!
//! Every waiting operation keeps a descriptor of its own. So a socket that is
//! closed behind our back (`close` instead of `closesocket`) stays good until
//! the answer is there, and what was claimed can always be given back.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use portkeep::control;
use portkeep_core::{
    Token,
    wire::{self, Grant, SelectRequest},
};

use crate::{
    abi::{CompletionRoutine, Instance, Socket},
    error, memory,
    overlapped::{self, Completion},
};

const FIRST_PAUSE: Duration = Duration::from_micros(50);
const LONGEST_PAUSE: Duration = Duration::from_millis(5);
/// How often a waiting operation makes sure that there still is an agent to wait for.
const AGENT_CHECK: Duration = Duration::from_millis(200);

/// The instance a program is told about.
pub(crate) fn instance(grant: &Grant) -> Instance {
    Instance {
        range: crate::abi::PortRange { start: grant.start.to_be(), count: grant.count },
        padding: 0,
        token: grant.token,
    }
}

/// ACQUIRE and GRANTED are two calls, SELECT and STATE are two: nothing may
/// come between them on one socket.
pub(crate) fn socket_lock(socket: Socket) -> MutexGuard<'static, ()> {
    static LOCKS: [Mutex<()>; 64] = [const { Mutex::new(()) }; 64];
    LOCKS[socket % LOCKS.len()].lock().unwrap_or_else(PoisonError::into_inner)
}

/// A request the kernel part has claimed the ports for and the agent has yet to confirm.
#[derive(Debug)]
pub(crate) struct Claim {
    socket: Socket,
    own: OwnedFd,
    grant: Grant,
    pause: Duration,
    next_agent_check: Instant,
}

impl Claim {
    pub(crate) fn new(socket: Socket, fd: BorrowedFd<'_>, grant: Grant) -> io::Result<Self> {
        match fd.try_clone_to_owned() {
            Ok(own) => {
                Ok(Self { socket, own, grant, pause: FIRST_PAUSE, next_agent_check: Instant::now() + AGENT_CHECK })
            }
            Err(error) => {
                give_back(fd, grant.token);
                Err(error)
            }
        }
    }

    pub(crate) fn give_back(&self) {
        give_back(self.own.as_fd(), self.grant.token);
    }

    /// `None`: not yet.
    fn poll(&mut self) -> Option<Result<Grant, i32>> {
        let state = {
            let _locked = socket_lock(self.socket);
            match control::granted(&self.own) {
                Ok(grant) if grant.token == self.grant.token => Ok((grant.state, grant.error)),
                // Another request was made on this socket since: ask by name.
                Ok(_) => control::state(
                    &self.own,
                    &SelectRequest { by: wire::BY_TOKEN, token: self.grant.token, ..Default::default() },
                )
                .map(|state| (state.state, state.error)),
                Err(error) => Err(error),
            }
        };
        match state {
            Ok((wire::ACTIVE, _)) => return Some(Ok(self.grant)),
            // Without a reason it is being refused at this moment.
            Ok((wire::PENDING, _) | (_, 0)) => {}
            Ok((_, error)) => {
                return Some(Err(error::of_control(&io::Error::from_raw_os_error(i32::from(error)))));
            }
            // Released or ended by somebody else while it was pending.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Some(Err(error::WSA_OPERATION_ABORTED)),
            Err(error) => return Some(Err(error::of_control(&error))),
        }
        if Instant::now() >= self.next_agent_check {
            self.next_agent_check = Instant::now() + AGENT_CHECK;
            if control::version(&self.own).is_ok_and(|version| version.agent == 0) {
                self.give_back();
                return Some(Err(error::WSAENETDOWN));
            }
        }
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        None
    }
}

pub(crate) fn give_back(fd: BorrowedFd<'_>, token: u64) {
    if let Some(token) = Token::new(token) {
        // It may have been refused in the meantime; then there is nothing to give back.
        let _ = control::release(fd, token);
    }
}

// ---- blocking ---------------------------------------------------------------

struct Blocked {
    socket: Socket,
    cancelled: Arc<AtomicBool>,
}

static BLOCKED: Mutex<Vec<Blocked>> = Mutex::new(Vec::new());

fn blocked() -> MutexGuard<'static, Vec<Blocked>> {
    BLOCKED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Wait on the calling thread, until there is an answer, a signal, or `closesocket` or `CancelIoEx` from elsewhere.
pub(crate) fn block(mut claim: Claim) -> Result<Grant, i32> {
    let cancelled = Arc::new(AtomicBool::new(false));
    blocked().push(Blocked { socket: claim.socket, cancelled: cancelled.clone() });
    let result = loop {
        if let Some(result) = claim.poll() {
            break result;
        }
        if cancelled.load(Ordering::Relaxed) {
            claim.give_back();
            break Err(error::WSA_OPERATION_ABORTED);
        }
        let pause = libc::timespec { tv_sec: 0, tv_nsec: claim.pause.subsec_nanos().into() };
        // SAFETY: a valid timespec in, nothing out.
        if unsafe { libc::nanosleep(&pause, std::ptr::null_mut()) } != 0 {
            claim.give_back();
            break Err(error::WSAEINTR);
        }
    };
    blocked().retain(|entry| !Arc::ptr_eq(&entry.cancelled, &cancelled));
    result
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
    pub(crate) fn new(claim: Claim, out: usize, completion: Completion, thread: usize) -> Self {
        Self { claim, out, completion, thread, due: Instant::now() + FIRST_PAUSE }
    }

    pub(crate) fn socket(&self) -> Socket {
        self.claim.socket
    }

    fn finish(self, result: Result<Grant, i32>) {
        let result = result.and_then(|grant| {
            memory::write_late(self.out, instance(&grant)).map_err(|_| {
                self.claim.give_back();
                error::WSAEFAULT
            })?;
            Ok(size_of::<Instance>() as u32)
        });
        self.completion.deliver(result);
    }
}

#[derive(Default)]
struct Book {
    operations: Vec<Operation>,
    /// Being completed at this moment: no longer in `operations`, but not to be taken for complete yet.
    finishing: Vec<usize>,
    /// The process whose thread looks after them: a forked child has the list, but not the thread.
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

/// Hand an operation over to the thread that looks after them.
pub(crate) fn start(operation: Operation) -> Result<(), i32> {
    let mut locked = lock();
    let book = within(&mut locked);
    let me = std::process::id();
    if book.keeper.is_some_and(|keeper| keeper != me) {
        // These are the parent's; our copies of its descriptors close without a word.
        book.operations.clear();
        book.finishing.clear();
        book.keeper = None;
    }
    if book.keeper.is_none() {
        let spawned = std::thread::Builder::new().name("portkeep-winsock".into()).spawn(keep);
        if spawned.is_err() {
            operation.claim.give_back();
            return Err(error::WSAENOBUFS);
        }
        book.keeper = Some(me);
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
            if let Some(result) = operation.claim.poll() {
                done = Some((index, result));
                break;
            }
            operation.due = now + operation.claim.pause;
        }
        if let Some((index, result)) = done {
            let operation = book.operations.swap_remove(index);
            locked = finish(locked, vec![operation], &result);
            continue;
        }
        let next = book.operations.iter().map(|operation| operation.due).min().unwrap_or(now);
        let pause = next.saturating_duration_since(Instant::now());
        locked = CHANGED.wait_timeout(locked, pause).unwrap_or_else(PoisonError::into_inner).0;
    }
}

/// Complete operations that were taken off the list, without holding the lock:
/// delivery may call out of this library.
fn finish(mut locked: Locked, operations: Vec<Operation>, result: &Result<Grant, i32>) -> Locked {
    let addresses: Vec<usize> = operations.iter().map(|operation| operation.completion.overlapped).collect();
    within(&mut locked).finishing.extend(&addresses);
    drop(locked);
    for operation in operations {
        operation.finish(*result);
    }
    locked = lock();
    within(&mut locked).finishing.retain(|address| !addresses.contains(address));
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
        for operation in &picked {
            operation.claim.give_back();
        }
        drop(finish(locked, picked, &Err(error::WSA_OPERATION_ABORTED)));
    }
    count
}

/// As [`abort`], for everything on a socket, the blocking calls included.
pub(crate) fn abort_socket(socket: Socket) -> usize {
    let mut count = abort(|operation| operation.socket() == socket);
    for entry in blocked().iter().filter(|entry| entry.socket == socket) {
        entry.cancelled.store(true, Ordering::Relaxed);
        count += 1;
    }
    count
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
        if !crate::socket::is_socket(handle) {
            return Err(error::WSA_INVALID_HANDLE);
        }
        let count = if blocking_too {
            abort_socket(handle)
        } else {
            abort(|operation| operation.socket() == handle && which(operation))
        };
        if count == 0 { Err(error::ERROR_NOT_FOUND) } else { Ok(()) }
    })
}

/// `CancelIoEx`: from any thread, one operation or all of a socket.
#[unsafe(no_mangle)]
pub extern "C" fn CancelIoEx(handle: usize, overlapped: usize) -> i32 {
    cancel(handle, |operation| operation.completion.overlapped == overlapped, overlapped == 0)
}

/// `CancelIo`: what the calling thread has started on a socket.
#[unsafe(no_mangle)]
pub extern "C" fn CancelIo(handle: usize) -> i32 {
    let me = crate::wait::this_thread();
    cancel(handle, |operation| operation.thread == me, false)
}

/// Where and how an operation started by this call tells that it is done.
pub(crate) fn completion(
    at: usize,
    overlapped: &crate::abi::Overlapped,
    routine: Option<CompletionRoutine>,
    thread: crate::abi::ThreadId,
) -> Completion {
    Completion { overlapped: at, notice: overlapped::notice(overlapped, routine, thread) }
}
