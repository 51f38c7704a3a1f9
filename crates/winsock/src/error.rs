//! Winsock's error numbers, and where they come from.
//!
//! `WSAGetLastError` and `GetLastError` are one value per thread, as on Windows.

use std::{cell::Cell, io};

macro_rules! codes {
    ($($name:ident = $number:literal;)*) => {
        $(pub(crate) const $name: i32 = $number;)*
    };
}

codes! {
    ERROR_ACCESS_DENIED = 5;
    WSA_INVALID_HANDLE = 6;
    ERROR_SHARING_VIOLATION = 32;
    ERROR_NOT_SUPPORTED = 50;
    WSA_INVALID_PARAMETER = 87;
    WSA_OPERATION_ABORTED = 995;
    WSA_IO_INCOMPLETE = 996;
    WSA_IO_PENDING = 997;
    ERROR_NOT_FOUND = 1168;
    WSAEINTR = 10004;
    WSAEACCES = 10013;
    WSAEFAULT = 10014;
    WSAEINVAL = 10022;
    WSAEMFILE = 10024;
    WSAEWOULDBLOCK = 10035;
    WSAEALREADY = 10037;
    WSAENOTSOCK = 10038;
    WSAEDESTADDRREQ = 10039;
    WSAEMSGSIZE = 10040;
    WSAEPROTOTYPE = 10041;
    WSAENOPROTOOPT = 10042;
    WSAEPROTONOSUPPORT = 10043;
    WSAESOCKTNOSUPPORT = 10044;
    WSAEOPNOTSUPP = 10045;
    WSAEPFNOSUPPORT = 10046;
    WSAEAFNOSUPPORT = 10047;
    WSAEADDRINUSE = 10048;
    WSAEADDRNOTAVAIL = 10049;
    WSAENETDOWN = 10050;
    WSAENETUNREACH = 10051;
    WSAENETRESET = 10052;
    WSAECONNABORTED = 10053;
    WSAECONNRESET = 10054;
    WSAENOBUFS = 10055;
    WSAEISCONN = 10056;
    WSAENOTCONN = 10057;
    WSAESHUTDOWN = 10058;
    WSAETIMEDOUT = 10060;
    WSAECONNREFUSED = 10061;
    WSAELOOP = 10062;
    WSAENAMETOOLONG = 10063;
    WSAEHOSTDOWN = 10064;
    WSAEHOSTUNREACH = 10065;
    WSASYSNOTREADY = 10091;
    WSAVERNOTSUPPORTED = 10092;
    WSANOTINITIALISED = 10093;
    WSASYSCALLFAILURE = 10107;
}

thread_local! {
    static LAST: Cell<i32> = const { Cell::new(0) };
}

pub(crate) fn last() -> i32 {
    LAST.get()
}

pub(crate) fn set_last(code: i32) {
    LAST.set(code);
}

/// The Winsock error for the errno of an ordinary socket call.
pub(crate) fn of_errno(errno: i32) -> i32 {
    match errno {
        libc::EINTR => WSAEINTR,
        libc::EBADF | libc::ENOTSOCK => WSAENOTSOCK,
        libc::EACCES | libc::EPERM => WSAEACCES,
        libc::EFAULT => WSAEFAULT,
        libc::EINVAL => WSAEINVAL,
        libc::EMFILE | libc::ENFILE => WSAEMFILE,
        // A connect that goes on in the background is "would block" here.
        libc::EAGAIN | libc::EINPROGRESS => WSAEWOULDBLOCK,
        libc::EALREADY => WSAEALREADY,
        libc::EDESTADDRREQ => WSAEDESTADDRREQ,
        libc::EMSGSIZE => WSAEMSGSIZE,
        libc::EPROTOTYPE => WSAEPROTOTYPE,
        libc::ENOPROTOOPT => WSAENOPROTOOPT,
        libc::EPROTONOSUPPORT => WSAEPROTONOSUPPORT,
        libc::ESOCKTNOSUPPORT => WSAESOCKTNOSUPPORT,
        libc::EOPNOTSUPP => WSAEOPNOTSUPP,
        libc::EPFNOSUPPORT => WSAEPFNOSUPPORT,
        libc::EAFNOSUPPORT => WSAEAFNOSUPPORT,
        libc::EADDRINUSE => WSAEADDRINUSE,
        libc::EADDRNOTAVAIL => WSAEADDRNOTAVAIL,
        libc::ENETDOWN => WSAENETDOWN,
        libc::ENETUNREACH => WSAENETUNREACH,
        libc::ENETRESET => WSAENETRESET,
        libc::ECONNABORTED => WSAECONNABORTED,
        libc::ECONNRESET => WSAECONNRESET,
        libc::ENOBUFS | libc::ENOMEM | libc::ENOSPC | libc::EDQUOT => WSAENOBUFS,
        libc::EISCONN => WSAEISCONN,
        libc::ENOTCONN => WSAENOTCONN,
        libc::ESHUTDOWN | libc::EPIPE => WSAESHUTDOWN,
        libc::ETIMEDOUT => WSAETIMEDOUT,
        libc::ECONNREFUSED => WSAECONNREFUSED,
        libc::ELOOP => WSAELOOP,
        libc::ENAMETOOLONG => WSAENAMETOOLONG,
        libc::EHOSTDOWN => WSAEHOSTDOWN,
        libc::EHOSTUNREACH => WSAEHOSTUNREACH,
        libc::ECANCELED => WSA_OPERATION_ABORTED,
        _ => WSASYSCALLFAILURE,
    }
}

/// The Winsock error for the errno of a control code: the page knows neither
/// "no such token" nor "not yours", and an unserved code is an unsupported one.
pub(crate) fn of_control(error: &io::Error) -> i32 {
    match error.raw_os_error().unwrap_or(libc::EIO) {
        libc::ENOPROTOOPT => WSAEOPNOTSUPP,
        libc::ENOENT | libc::EPERM => WSAEINVAL,
        errno => of_errno(errno),
    }
}

/// The errno of the call that just failed.
pub(crate) fn of_last_errno() -> i32 {
    of_errno(io::Error::last_os_error().raw_os_error().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_control_errors_is_as_specified() {
        let table = [
            (libc::ENOPROTOOPT, WSAEOPNOTSUPP),
            (libc::ENOTSOCK, WSAENOTSOCK),
            (libc::EBADF, WSAENOTSOCK),
            (libc::EOPNOTSUPP, WSAEOPNOTSUPP),
            (libc::EINVAL, WSAEINVAL),
            (libc::EFAULT, WSAEFAULT),
            (libc::EADDRINUSE, WSAEADDRINUSE),
            (libc::ENOSPC, WSAENOBUFS),
            (libc::EDQUOT, WSAENOBUFS),
            (libc::EACCES, WSAEACCES),
            (libc::ENOENT, WSAEINVAL),
            (libc::EPERM, WSAEINVAL),
            (libc::ENETDOWN, WSAENETDOWN),
            (libc::EINTR, WSAEINTR),
            (libc::ECANCELED, WSA_OPERATION_ABORTED),
        ];
        for (errno, code) in table {
            assert_eq!(of_control(&io::Error::from_raw_os_error(errno)), code, "errno {errno}");
        }
    }
}
