//! Events, and the queues of routines that wait until their thread is in an alertable wait.
//!
//! One table with one lock and one condition holds every event and every
//! queue. A waiter looks at the table and sleeps until anything in it changes:
//! that makes "all of these", "any of these" and "or a routine" one loop, and
//! the number of waiters in a program is small.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::{
    abi::{CompletionRoutine, Handle, Overlapped, ThreadId, UserApc},
    error,
    memory::Memory,
};

/// `WSA_MAXIMUM_WAIT_EVENTS`.
const MOST: u32 = 64;
const WAIT_OBJECT_0: u32 = 0;
const WAIT_IO_COMPLETION: u32 = 0xc0;
const WAIT_TIMEOUT: u32 = 258;
const WAIT_FAILED: u32 = u32::MAX;
/// `GetCurrentThread()`.
const CURRENT_THREAD: Handle = usize::MAX - 1;

enum Object {
    Event { manual: bool, set: bool },
    Thread(usize),
}

/// A routine on its way to its thread.
pub(crate) enum Apc {
    User(UserApc, usize),
    Completion { routine: CompletionRoutine, error: u32, bytes: u32, overlapped: usize },
}

impl Apc {
    fn run(self) {
        match self {
            // SAFETY: the caller handed this routine over to be called with this context, on this thread.
            Self::User(routine, context) => unsafe { routine(context) },
            // SAFETY: as above; the overlapped structure is the one it gave along.
            Self::Completion { routine, error, bytes, overlapped } => unsafe {
                routine(error, bytes, overlapped as *mut Overlapped, 0)
            },
        }
    }
}

#[derive(Default)]
struct Table {
    objects: HashMap<Handle, Object>,
    queues: HashMap<usize, VecDeque<Apc>>,
    last_handle: Handle,
    last_thread: usize,
}

static TABLE: Mutex<Option<Table>> = Mutex::new(None);
static CHANGED: Condvar = Condvar::new();

type Locked = MutexGuard<'static, Option<Table>>;

fn lock() -> Locked {
    let mut table = TABLE.lock().unwrap_or_else(PoisonError::into_inner);
    // Handles begin far above descriptor numbers, so that one is never taken for the other.
    table.get_or_insert_with(|| Table { last_handle: 0x4000_0000, ..Table::default() });
    table
}

fn within(table: &mut Locked) -> &mut Table {
    table.as_mut().expect("lock() fills it")
}

fn add(object: Object) -> Handle {
    let mut table = lock();
    let table = within(&mut table);
    table.last_handle += 4;
    table.objects.insert(table.last_handle, object);
    table.last_handle
}

/// The queue of a thread ends with it.
struct Me(usize);

impl Drop for Me {
    fn drop(&mut self) {
        within(&mut lock()).queues.remove(&self.0);
    }
}

thread_local! {
    static ME: Me = {
        let mut table = lock();
        let table = within(&mut table);
        table.last_thread += 1;
        table.queues.insert(table.last_thread, VecDeque::new());
        Me(table.last_thread)
    };
}

/// The number of the calling thread.
pub(crate) fn this_thread() -> usize {
    ME.try_with(|me| me.0).unwrap_or(0)
}

/// Queue a routine to a thread. False: the thread is gone.
pub(crate) fn queue(thread: usize, apc: Apc) -> bool {
    let found = within(&mut lock()).queues.get_mut(&thread).map(|queue| queue.push_back(apc)).is_some();
    CHANGED.notify_all();
    found
}

/// The thread a WSATHREADID means.
pub(crate) fn thread_of(id: ThreadId) -> Option<usize> {
    if id.handle == CURRENT_THREAD {
        return Some(this_thread());
    }
    match within(&mut lock()).objects.get(&id.handle) {
        Some(Object::Thread(thread)) => Some(*thread),
        _ => None,
    }
}

pub(crate) fn open_this_thread() -> ThreadId {
    let thread = this_thread();
    ThreadId { handle: add(Object::Thread(thread)), reserved: thread }
}

pub(crate) fn close(handle: Handle) -> Result<(), i32> {
    within(&mut lock()).objects.remove(&handle).map(drop).ok_or(error::WSA_INVALID_HANDLE)
}

pub(crate) fn create_event(manual: bool, set: bool) -> Handle {
    add(Object::Event { manual, set })
}

/// Set or reset an event.
pub(crate) fn change_event(handle: Handle, value: bool) -> Result<(), i32> {
    let mut table = lock();
    match within(&mut table).objects.get_mut(&handle) {
        Some(Object::Event { set, .. }) => *set = value,
        _ => return Err(error::WSA_INVALID_HANDLE),
    }
    drop(table);
    CHANGED.notify_all();
    Ok(())
}

/// Whether there is such an event.
pub(crate) fn is_event(handle: Handle) -> bool {
    matches!(within(&mut lock()).objects.get(&handle), Some(Object::Event { .. }))
}

/// The first of the events that satisfies the wait; automatic ones are reset.
fn take(table: &mut Table, handles: &[Handle], all: bool) -> Result<Option<u32>, i32> {
    let mut set = Vec::with_capacity(handles.len());
    for handle in handles {
        match table.objects.get(handle) {
            Some(Object::Event { set: is_set, .. }) => set.push(*is_set),
            _ => return Err(error::WSA_INVALID_HANDLE),
        }
    }
    let first = if all { set.iter().all(|set| *set).then_some(0) } else { set.iter().position(|set| *set) };
    if let Some(first) = first {
        let taken = if all { handles } else { &handles[first..=first] };
        for handle in taken {
            if let Some(Object::Event { manual: false, set }) = table.objects.get_mut(handle) {
                *set = false;
            }
        }
    }
    Ok(first.map(|index| index as u32))
}

/// Sleep until the events satisfy the wait, a routine has run (if `alertable`), or the time is up.
fn wait(handles: &[Handle], all: bool, milliseconds: u32, alertable: bool) -> Result<u32, i32> {
    let deadline = (milliseconds != u32::MAX).then(|| Instant::now() + Duration::from_millis(u64::from(milliseconds)));
    let me = if alertable { this_thread() } else { 0 };
    let mut table = lock();
    loop {
        let inner = within(&mut table);
        if !handles.is_empty()
            && let Some(index) = take(inner, handles, all)?
        {
            return Ok(WAIT_OBJECT_0 + index);
        }
        let due = if alertable { inner.queues.get(&me).map_or(0, VecDeque::len) } else { 0 };
        if due > 0 {
            for _ in 0..due {
                let Some(apc) = within(&mut table).queues.get_mut(&me).and_then(VecDeque::pop_front) else { break };
                // A routine may call anything. If it waits here itself, it runs the ones after it.
                drop(table);
                apc.run();
                table = lock();
            }
            return Ok(WAIT_IO_COMPLETION);
        }
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        table = match left {
            Some(Duration::ZERO) => return Ok(WAIT_TIMEOUT),
            Some(left) => CHANGED.wait_timeout(table, left).unwrap_or_else(PoisonError::into_inner).0,
            None => CHANGED.wait(table).unwrap_or_else(PoisonError::into_inner),
        };
    }
}

fn wait_for_many(count: u32, handles: usize, all: i32, milliseconds: u32, alertable: i32) -> u32 {
    let result = (|| {
        if count == 0 || count > MOST {
            return Err(error::WSA_INVALID_PARAMETER);
        }
        let list: Vec<Handle> = Memory::default().read_list(handles, count as usize).map_err(|_| error::WSAEFAULT)?;
        wait(&list, all != 0, milliseconds, alertable != 0)
    })();
    result.unwrap_or_else(|code| {
        error::set_last(code);
        WAIT_FAILED
    })
}

/// `WSAWaitForMultipleEvents`.
#[unsafe(no_mangle)]
pub extern "C" fn WSAWaitForMultipleEvents(count: u32, events: usize, all: i32, ms: u32, alertable: i32) -> u32 {
    if let Err(code) = crate::startup::check() {
        error::set_last(code);
        return WAIT_FAILED;
    }
    crate::boundary(WAIT_FAILED, || wait_for_many(count, events, all, ms, alertable))
}

/// `WaitForMultipleObjectsEx`.
#[unsafe(no_mangle)]
pub extern "C" fn WaitForMultipleObjectsEx(count: u32, handles: usize, all: i32, ms: u32, alertable: i32) -> u32 {
    crate::boundary(WAIT_FAILED, || wait_for_many(count, handles, all, ms, alertable))
}

/// `WaitForMultipleObjects`.
#[unsafe(no_mangle)]
pub extern "C" fn WaitForMultipleObjects(count: u32, handles: usize, all: i32, ms: u32) -> u32 {
    WaitForMultipleObjectsEx(count, handles, all, ms, 0)
}

/// `WaitForSingleObjectEx`.
#[unsafe(no_mangle)]
pub extern "C" fn WaitForSingleObjectEx(handle: Handle, ms: u32, alertable: i32) -> u32 {
    WaitForMultipleObjectsEx(1, &raw const handle as usize, 0, ms, alertable)
}

/// `WaitForSingleObject`.
#[unsafe(no_mangle)]
pub extern "C" fn WaitForSingleObject(handle: Handle, ms: u32) -> u32 {
    WaitForSingleObjectEx(handle, ms, 0)
}

/// `SleepEx`: 0 when the time is up, WAIT_IO_COMPLETION when routines have run.
#[unsafe(no_mangle)]
pub extern "C" fn SleepEx(ms: u32, alertable: i32) -> u32 {
    crate::boundary(0, || match wait(&[], false, ms, alertable != 0) {
        Ok(WAIT_IO_COMPLETION) => WAIT_IO_COMPLETION,
        _ => 0,
    })
}

/// `Sleep`.
#[unsafe(no_mangle)]
pub extern "C" fn Sleep(ms: u32) {
    SleepEx(ms, 0);
}

/// `CreateEventA`. Events have no names here: a name is ERROR_NOT_SUPPORTED.
#[unsafe(no_mangle)]
pub extern "C" fn CreateEventA(_attributes: usize, manual: i32, set: i32, name: usize) -> Handle {
    crate::boundary(0, || {
        if name != 0 {
            error::set_last(error::ERROR_NOT_SUPPORTED);
            return 0;
        }
        create_event(manual != 0, set != 0)
    })
}

/// `CreateEventW`.
#[unsafe(no_mangle)]
pub extern "C" fn CreateEventW(attributes: usize, manual: i32, set: i32, name: usize) -> Handle {
    CreateEventA(attributes, manual, set, name)
}

/// `SetEvent`.
#[unsafe(no_mangle)]
pub extern "C" fn SetEvent(handle: Handle) -> i32 {
    crate::truth(|| change_event(handle, true))
}

/// `ResetEvent`.
#[unsafe(no_mangle)]
pub extern "C" fn ResetEvent(handle: Handle) -> i32 {
    crate::truth(|| change_event(handle, false))
}

/// `CloseHandle`, for events and threads. A socket is closed with closesocket.
#[unsafe(no_mangle)]
pub extern "C" fn CloseHandle(handle: Handle) -> i32 {
    crate::truth(|| close(handle))
}

/// `GetCurrentThread`: a stand-in that always means the calling thread.
#[unsafe(no_mangle)]
pub extern "C" fn GetCurrentThread() -> Handle {
    CURRENT_THREAD
}

/// `WSACreateEvent`: to be reset by hand, not set.
#[unsafe(no_mangle)]
pub extern "C" fn WSACreateEvent() -> Handle {
    crate::boundary(0, || match crate::startup::check() {
        Ok(()) => create_event(true, false),
        Err(code) => {
            error::set_last(code);
            0
        }
    })
}

/// `WSASetEvent`.
#[unsafe(no_mangle)]
pub extern "C" fn WSASetEvent(handle: Handle) -> i32 {
    crate::truth(|| crate::startup::check().and_then(|()| change_event(handle, true)))
}

/// `WSAResetEvent`.
#[unsafe(no_mangle)]
pub extern "C" fn WSAResetEvent(handle: Handle) -> i32 {
    crate::truth(|| crate::startup::check().and_then(|()| change_event(handle, false)))
}

/// `WSACloseEvent`.
#[unsafe(no_mangle)]
pub extern "C" fn WSACloseEvent(handle: Handle) -> i32 {
    crate::truth(|| {
        crate::startup::check()?;
        if is_event(handle) { close(handle) } else { Err(error::WSA_INVALID_HANDLE) }
    })
}
