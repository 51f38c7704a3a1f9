//! No agent: what needs one says so at once and what to do, and all else works.

use crate::machine;

#[test]
fn without_an_agent_what_needs_one_says_so_and_the_rest_works() {
    let bed = machine!("no-agent");
    bed.portkeep(&["up"]).ok();
    let why = &["20000 is outside the pool (61000-65535)", "no agent runs", "start `portkeep agent`"];
    bed.portkeep(&["acquire", "--ports", "20000"]).fails(1, why);
    bed.portkeep_as_nobody(&["acquire", "--ports", "20000"]).fails(1, why);
    bed.portkeep(&["run", "--ports", "20000", "--", "echo", "started"]).fails(125, why);
    for words in [
        &["persist", "add", "--name", "a", "--tcp", "8443"][..],
        &["persist", "delete", "a"],
        &["reload"],
        &["watch"],
        &["excludedportrange", "add", "tcp", "5000", "2"],
    ] {
        bed.portkeep(words).fails(1, &["the agent is not running", "`systemctl start portkeep`"]);
    }
    // In the place of what is refused nothing is pending.
    assert_eq!(bed.portkeep(&["list", "--json"]).ok().json(), serde_json::json!([]));
    assert!(bed.portkeep(&["status"]).ok().out.contains("not running (needed for ports outside the pool"));
    for words in [&["persist", "list"][..], &["persist", "export"], &["excludedportrange", "show", "tcp", "persistent"]]
    {
        bed.portkeep(words).ok().tells(&["no agent runs"]);
    }
    for words in [&["list"][..], &["check"], &["acquire"], &["acquire", "--both"], &["run", "--", "true"], &["upgrade"]]
    {
        let said = bed.portkeep(words).ok();
        assert_eq!(said.err, "", "{words:?}");
    }
    // With one, what was refused is granted; when it is killed, it is kept, and the next is refused again.
    let agent = bed.agent(bed.command(&["agent"]));
    let holding = bed.hold(&["--ports", "20000", "--strict"]);
    assert!(holding.line.starts_with("20000 "), "{}", holding.line);
    drop(agent);
    assert_eq!(bed.outsider_binds("tcp", 20000), "AddrInUse");
    bed.portkeep(&["acquire", "--ports", "20001"]).fails(1, &["no agent runs"]);
    holding.let_go();
    bed.portkeep(&["down"]).ok();
    bed.is_clean();
}
