//! How a completion routine reaches the thread that issued its operation: through the queue of the program's own that it
//! gave to `WSPStartup`, or through this layer's.

use std::sync::{Mutex, PoisonError};

use crate::{
    abi::{CompletionRoutine, ThreadId, UserApc},
    wait::{self, Apc},
};

/// `WPUQueueApc`.
pub(crate) type QueueApc = unsafe extern "C" fn(*const ThreadId, UserApc, usize, *mut i32) -> i32;

static UPCALL: Mutex<Option<QueueApc>> = Mutex::new(None);

/// Completions go through this queue from now on; `None`: through this layer's.
pub(crate) fn set(upcall: Option<QueueApc>) {
    *UPCALL.lock().unwrap_or_else(PoisonError::into_inner) = upcall;
}

/// Runs on the issuing thread. It unpacks the arguments of the routine, because a foreign queue carries only one
/// number.
unsafe extern "C" fn unpack(context: usize) {
    // SAFETY: `context` is the box that queue_apc gave away, and a queue delivers it once.
    let apc = unsafe { Box::from_raw(context as *mut (CompletionRoutine, u32, u32, usize)) };
    let (routine, code, bytes, at) = *apc;
    // SAFETY: the program handed this routine over to be called with this structure, on this thread.
    unsafe { routine(code, bytes, at as *mut _, 0) };
}

/// Whether completions go through a queue of the program's own.
pub(crate) fn is_set() -> bool {
    UPCALL.lock().unwrap_or_else(PoisonError::into_inner).is_some()
}

/// Queue a completion routine to the thread that issued the operation.
pub(crate) fn queue_apc(thread: ThreadId, apc: Apc) {
    let upcall = *UPCALL.lock().unwrap_or_else(PoisonError::into_inner);
    match (upcall, apc) {
        (Some(upcall), Apc::Completion { routine, error, bytes, overlapped }) if thread.handle != 0 => {
            let context = Box::into_raw(Box::new((routine, error, bytes, overlapped))) as usize;
            let mut failure = 0;
            // SAFETY: the upcall is what the program passed to WSPStartup as WPUQueueApc; all pointers are to locals.
            if unsafe { upcall(&thread, unpack, context, &mut failure) } != 0 {
                // SAFETY: not accepted, so the box is still ours.
                drop(unsafe { Box::from_raw(context as *mut (CompletionRoutine, u32, u32, usize)) });
            }
        }
        (_, apc) => {
            // If the thread is gone, it gets no answer.
            let _ = wait::queue(thread.reserved, apc);
        }
    }
}
