//! The examples run, with kernel enforcement and without. `cargo test` has built them beside this test.

use std::{
    io::{BufRead, BufReader, Read},
    net::{Ipv4Addr, TcpStream},
    process::{Command, Stdio},
};

use portkeep_testkit::{Sandbox, kernel_or_skip, new_namespace};

fn example(name: &str) -> Command {
    let test = std::env::current_exe().unwrap();
    let path = test.ancestors().nth(2).unwrap().join("examples").join(name);
    assert!(path.exists(), "{} is missing: cargo build -p portkeep --examples", path.display());
    Command::new(path)
}

fn output_of(name: &str) -> String {
    let output = example(name).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{name}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

fn all_with(enforcement: &str) {
    let text = output_of("rtp_pair");
    assert!(text.contains(enforcement) && text.contains("media") && text.contains("control"), "{text}");

    let text = output_of("hand_over");
    assert!(text.contains(enforcement) && text.contains("thread: bound") && text.contains("listening"), "{text}");

    let mut server = example("four_ports").stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.contains(enforcement), "{line}");
    let last: u16 = line.split([' ', '-', ',']).nth(2).unwrap().parse().unwrap();
    let mut shown = String::new();
    // The example writes the line before its listeners exist.
    let mut client = (0..100)
        .find_map(|_| {
            std::thread::sleep(std::time::Duration::from_millis(10));
            TcpStream::connect((Ipv4Addr::LOCALHOST, last)).ok()
        })
        .expect("a server");
    client.read_to_string(&mut shown).unwrap();
    server.kill().unwrap();
    server.wait().unwrap();
    assert_eq!(shown, format!("this is port {last}\n"));
}

/// Held mode first: once this process is in the sandbox, it stays there.
#[test]
fn examples() {
    if portkeep::version().is_err() {
        all_with("held: ");
    }
    if kernel_or_skip("examples") {
        Sandbox::get();
        new_namespace();
        all_with("kernel: ");
    }
}
