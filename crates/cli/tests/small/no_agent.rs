//! Without an agent: a command that requires one says so at once, and says what to do. Everything else works.

use crate::machine;

#[test]
fn without_an_agent_a_command_that_needs_one_says_so_and_the_rest_works() {
    let machine = machine!("no-agent");
    machine.portkeep(&["up"]).ok();
    let why = &["20000 is outside the pool (61000-65535)", "no agent runs", "start `portkeep agent`"];
    machine.portkeep(&["acquire", "--ports", "20000"]).fails(1, why);
    machine.portkeep_as_nobody(&["acquire", "--ports", "20000"]).fails(1, why);
    machine.portkeep(&["run", "--ports", "20000", "--", "echo", "started"]).fails(125, why);
    for words in [
        &["persist", "add", "--name", "a", "--tcp", "8443"][..],
        &["persist", "delete", "a"],
        &["reload"],
        &["watch"],
        &["excludedportrange", "add", "tcp", "5000", "2"],
    ] {
        machine.portkeep(words).fails(1, &["the agent is not running", "`systemctl start portkeep`"]);
    }
    // A request that is refused leaves nothing pending.
    assert_eq!(machine.portkeep(&["list", "--json"]).ok().json(), serde_json::json!([]));
    assert!(machine.portkeep(&["status"]).ok().out.contains("not running (needed for ports outside the pool"));
    for words in [&["persist", "list"][..], &["persist", "export"], &["excludedportrange", "show", "tcp", "persistent"]]
    {
        machine.portkeep(words).ok().reports(&["no agent runs"]);
    }
    for words in [&["list"][..], &["check"], &["acquire"], &["acquire", "--both"], &["run", "--", "true"], &["upgrade"]]
    {
        let said = machine.portkeep(words).ok();
        assert_eq!(said.err, "", "{words:?}");
    }
    // With an agent, the refused request is granted. When the agent is killed, the grant stays, and the next request is
    // refused.
    let agent = machine.agent(machine.command(&["agent"]));
    let holding = machine.hold(&["--ports", "20000", "--strict"]);
    assert!(holding.line.starts_with("20000 "), "{}", holding.line);
    drop(agent);
    assert_eq!(machine.outsider_binds("tcp", 20000), "AddrInUse");
    machine.portkeep(&["acquire", "--ports", "20001"]).fails(1, &["no agent runs"]);
    holding.let_go();
    machine.portkeep(&["down"]).ok();
    machine.is_clean();
}
