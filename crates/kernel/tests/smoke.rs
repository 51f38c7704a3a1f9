//! The shortest way through everything: acquire, associate, bind, refuse, release, close.

use std::{io, net::SocketAddr};

use portkeep::control;
use portkeep_core::{Errno, Token, wire::AcquireRequest};
use portkeep_testkit::{Sandbox, kernel_or_skip, new_namespace};
use socket2::{Domain, Protocol, Socket, Type};

fn tcp() -> Socket {
    Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap()
}

fn errno<T: std::fmt::Debug>(result: io::Result<T>) -> Errno {
    Errno(result.unwrap_err().raw_os_error().unwrap())
}

fn any(port: u16) -> socket2::SockAddr {
    SocketAddr::from(([0, 0, 0, 0], port)).into()
}

#[test]
fn a_block_is_acquired_drawn_from_and_given_back() {
    if !kernel_or_skip("a_block_is_acquired_drawn_from_and_given_back") {
        return;
    }
    let sandbox = Sandbox::get();
    let netns = new_namespace();
    // The loader falls back to programs without BTF. A program that the verifier refuses with BTF would go unnoticed.
    let types = std::path::Path::new("/sys/kernel/btf/vmlinux").exists();
    assert_eq!(sandbox.loaded().knows_places(), types, "what a process is, is known where the kernel has BTF");
    let owner = tcp();
    control::acquire(&owner, &AcquireRequest { count: 4, ..Default::default() }).unwrap();
    let grant = control::granted(&owner).unwrap();
    assert_eq!(grant.count, 4);
    assert_eq!(grant.start, 61000);
    let token = Token::new(grant.token).unwrap();

    let associate = tcp();
    control::associate(&associate, token).unwrap();
    associate.bind(&any(0)).unwrap();
    assert_eq!(associate.local_addr().unwrap().as_socket().unwrap().port(), 61000);

    // A7: the owner process may also bind without association. Ports that are not reserved are free (N1).
    tcp().bind(&any(61001)).unwrap();
    tcp().bind(&any(61004)).unwrap();

    control::release(&owner, token).unwrap();
    assert_eq!(errno(control::release(&owner, token)), Errno::ENOENT);
    tcp().bind(&any(61001)).unwrap();
    drop((associate, owner));

    let maps = sandbox.loaded().maps().unwrap();
    assert_eq!(maps.reservations().filter(|r| r.as_ref().unwrap().1.netns == netns).count(), 0);
    for item in maps.words() {
        let (key, word) = item.unwrap();
        assert!(key.netns != netns || word.is_vacant(), "{word:?}");
    }
}
