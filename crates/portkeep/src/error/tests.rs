use std::error::Error;

use super::*;

fn io_error() -> io::Error {
    io::Error::from_raw_os_error(Errno::EFAULT.0)
}

/// Constructs every error, nested ones too. If this stops compiling, the public interface has changed incompatibly.
#[test]
fn the_shape_of_the_errors() {
    let ports = PortRange::new(61000, 4).unwrap();
    let acquire = [
        (AcquireError::Malformed(MalformedRequest::Block(PortRangeError::Empty)), 22),
        (AcquireError::Malformed(MalformedRequest::Align(AlignError::NotPowerOfTwo(3))), 22),
        (AcquireError::Malformed(MalformedRequest::Label("\0".into())), 22),
        (AcquireError::ForeignCgroup, 22),
        (AcquireError::InUse { ports, transports: Transports::Both, by: None }, 98),
        (AcquireError::NoRoom { count: 4 }, 28),
        (AcquireError::OverQuota, 122),
        (AcquireError::Privileged, 13),
        (AcquireError::AgentAbsent, 100),
        (AcquireError::AgentFailed, 100),
        (AcquireError::TooManyFiles { count: 4 }, 24),
        (AcquireError::Cancelled, 125),
        (AcquireError::KernelAbsent, 92),
        (AcquireError::OtherAbi { found: 2, expected: 1 }, 92),
        (AcquireError::HeldCannot { what: "it" }, 95),
        (AcquireError::WrongSocket, 95),
        (AcquireError::SocketCall { source: io_error() }, 14),
        (AcquireError::AcquireCall { source: io_error() }, 14),
    ];
    for (error, errno) in acquire {
        assert_eq!(error.errno(), Some(Errno(errno)), "{error}");
        check(error, errno);
    }
    let release = [
        (ReleaseError::Unknown, 2),
        (ReleaseError::NotOwner, 1),
        (ReleaseError::OtherNamespace, 22),
        (ReleaseError::KernelAbsent, 92),
        (ReleaseError::ReleaseCall { source: io_error() }, 14),
    ];
    for (error, errno) in release {
        assert_eq!(error.errno(), Some(Errno(errno)), "{error}");
        check(error, errno);
    }
    let bind = [
        (BindError::Exhausted, 98),
        (BindError::InUse { port: 1 }, 98),
        (BindError::OutsideBlock { port: 1 }, 13),
        (BindError::Ended, 13),
        (BindError::OtherTransport { transport: Transport::Udp }, 22),
        (BindError::Associate(AssociateError::Unknown), 2),
        (BindError::Associate(AssociateError::NotInScope), 1),
        (BindError::Associate(AssociateError::AlreadyBound), 22),
        (BindError::Associate(AssociateError::Mismatch), 22),
        (BindError::Associate(AssociateError::NotTcpOrUdp), 95),
        (BindError::Associate(AssociateError::Held), 95),
        (BindError::Associate(AssociateError::KernelAbsent), 92),
        (BindError::Associate(AssociateError::AssociateCall { source: io_error() }), 14),
        (BindError::BindCall { source: io_error() }, 14),
    ];
    for (error, errno) in bind {
        assert_eq!(error.errno(), Some(Errno(errno)), "{error}");
        check(ConnectError::Bind(error), errno);
    }
    let peer = std::net::SocketAddr::from(([127, 0, 0, 1], 1));
    check(ConnectError::ConnectCall { peer, source: io_error() }, 14);
    let query = [
        (QueryError::KernelAbsent, 92),
        (QueryError::OtherAbi { found: 2, expected: 1 }, 92),
        (QueryError::NotTcpOrUdp, 95),
        (QueryError::Ended, 2),
        (QueryError::QueryCall { source: io_error() }, 14),
    ];
    for (error, errno) in query {
        assert_eq!(error.errno(), Some(Errno(errno)), "{error}");
        check(error, errno);
    }
}

fn check(error: impl Error + Into<io::Error>, errno: i32) {
    let text = error.to_string();
    let error: io::Error = error.into();
    assert_eq!(error.kind(), io::Error::from_raw_os_error(errno).kind());
    assert_eq!(error.to_string(), text);
}
