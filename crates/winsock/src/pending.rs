//! Operations that have to wait: a specific request that the agent confirms.
//!
//! The BPF programs cannot call back, so a waiting operation asks again, soon at first and then less often. A blocking
//! call asks on its own thread. The overlapped ones share one thread, which lives while there are any.
//!
//! Every waiting operation has a [`Claim`] with a descriptor and the token of its own. So several requests may wait on
//! one socket, and a socket that is closed behind our back (`close` instead of `closesocket`) stays good until the
//! answer is there. The claim ends before the program hears of the end: from then on only the program holds the socket.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
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
    socket::{descriptor, inode},
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

/// ACQUIRE and GRANTED are two calls, and so are SELECT and STATE. No other call of this process may come between them
/// on one socket. The lock is one for all sockets, because one socket can have several descriptors.
pub(crate) fn two_calls() -> MutexGuard<'static, ()> {
    static LOCK: Mutex<()> = Mutex::new(());
    LOCK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A request of which the ports are claimed. Dropping it gives them back, unless the request was granted.
#[derive(Debug)]
pub(crate) struct Claim {
    socket: Socket,
    own: OwnedFd,
    grant: Grant,
    granted: bool,
    pause: Duration,
    next_agent_check: Instant,
}

impl Drop for Claim {
    fn drop(&mut self) {
        if !self.granted {
            give_back(self.own.as_fd(), self.grant.token);
        }
    }
}

impl Claim {
    pub(crate) fn new(socket: Socket, fd: BorrowedFd<'_>, grant: Grant) -> io::Result<Self> {
        let own = fd.try_clone_to_owned().inspect_err(|_| give_back(fd, grant.token))?;
        let next_agent_check = Instant::now() + AGENT_CHECK;
        Ok(Self { socket, own, grant, granted: false, pause: FIRST_PAUSE, next_agent_check })
    }

    /// The reservation is the program's from here on.
    fn keep(mut self) -> Grant {
        self.granted = true;
        self.grant
    }

    /// The number of a socket alone does not say which socket it is: it may have been closed and given out again.
    fn is_on(&self, place: Place) -> bool {
        self.socket == place.socket && inode(self.own.as_raw_fd()) == Some(place.inode)
    }

    /// `None`: not yet.
    ///
    /// Asks for this request's own token. GRANTED would answer for the socket's last request, and would report that
    /// one's refusal to the wrong caller.
    fn poll(&mut self) -> Option<Result<(), i32>> {
        let select = SelectRequest { by: wire::BY_TOKEN, token: self.grant.token, ..Default::default() };
        let state = {
            let _locked = two_calls();
            control::state(&self.own, &select)
        };
        match state.map(|state| (state.state, state.error)) {
            Ok((wire::ACTIVE, _)) => return Some(Ok(())),
            // Without a reason it is being refused at this moment.
            Ok((wire::PENDING, _) | (_, 0)) => {}
            Ok((_, reason)) => {
                return Some(Err(error::of_control(&io::Error::from_raw_os_error(i32::from(reason)))));
            }
            // An administrator, or another thread, ended it while it was pending.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Some(Err(error::WSA_OPERATION_ABORTED)),
            Err(error) => return Some(Err(error::of_control(&error))),
        }
        if Instant::now() >= self.next_agent_check {
            self.next_agent_check = Instant::now() + AGENT_CHECK;
            if control::version(&self.own).is_ok_and(|version| version.agent == 0) {
                return Some(Err(error::WSAENETDOWN));
            }
        }
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        None
    }
}

/// RELEASE also drops what is left of a refused request.
pub(crate) fn give_back(fd: BorrowedFd<'_>, token: u64) {
    if let Some(token) = Token::new(token) {
        // ENOENT: it has ended already.
        let _ = control::release(fd, token);
    }
}

/// A socket, for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    socket: Socket,
    inode: u64,
}

impl Place {
    /// `None`: the number is no socket's.
    pub(crate) fn of(socket: Socket) -> Option<Self> {
        Some(Self { socket, inode: inode(descriptor(socket).ok()?)? })
    }
}

// ---- blocking ---------------------------------------------------------------

/// The claim of a blocked call. Either that call takes it out, or whoever cancels it does.
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
    let socket = claim.socket;
    let fd = claim.own.as_raw_fd();
    let inode = inode(fd);
    let shared: Shared = Arc::new(Mutex::new(Some(claim)));
    blocked().push(shared.clone());
    // closesocket cancels after it has closed: it was either before the push, which is seen here, or finds the claim.
    let closed = Place::of(socket).map(|place| place.inode) != inode;
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
    pub(crate) fn new(claim: Claim, out: usize, completion: Completion, thread: usize) -> Self {
        Self { claim, out, completion, thread, due: Instant::now() + FIRST_PAUSE }
    }

    /// End the claim, which closes its descriptor. What is left is to report the end, with the lock given up.
    fn settle(self, outcome: Result<(), i32>) -> Ended {
        let result = outcome.and_then(|()| {
            memory::write_late(self.out, instance(&self.claim.grant)).map_err(|_| error::WSAEFAULT)?;
            self.claim.keep();
            Ok(size_of::<Instance>() as u32)
        });
        Ended { completion: self.completion, result }
    }
}

/// An operation of which only the report is left.
struct Ended {
    completion: Completion,
    result: Result<u32, i32>,
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
        spawned.map_err(|_| error::WSAENOBUFS)?;
        book.keeper = Some(me);
    }
    let socket = operation.claim.socket;
    let inode = inode(operation.claim.own.as_raw_fd());
    // closesocket cancels after it has closed: it was either before this, which is seen here, or finds the operation.
    if Place::of(socket).map(|place| place.inode) != inode {
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

/// Report the end of operations that were taken off the list, without holding the lock: a report may call out of this
/// library.
fn report(mut locked: Locked, ended: Vec<Ended>) -> Locked {
    let addresses: Vec<usize> = ended.iter().map(|ended| ended.completion.overlapped).collect();
    within(&mut locked).finishing.extend(&addresses);
    drop(locked);
    for Ended { completion, result } in ended {
        completion.deliver(result);
    }
    locked = lock();
    // One of each address: the structure may be in use again, and ending again in another thread.
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
        let place = Place::of(handle).filter(|_| crate::socket::is_socket(handle)).ok_or(error::WSA_INVALID_HANDLE)?;
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
