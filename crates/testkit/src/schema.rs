//! Checks the output of commands with `--json` against docs/reference/portkeep.schema.json.

use std::sync::LazyLock;

use serde_json::{Value, json};

const SCHEMA: &str = include_str!("../../../docs/reference/portkeep.schema.json");

/// The schema, changed so that it allows only what it names.
static STRICT: LazyLock<Value> = LazyLock::new(|| {
    let mut schema = serde_json::from_str(SCHEMA).unwrap();
    forbid_others(&mut schema);
    schema
});

fn forbid_others(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            if map.get("properties").is_some_and(Value::is_object) {
                map.insert("additionalProperties".into(), false.into());
            }
            map.values_mut().for_each(forbid_others);
        }
        Value::Array(list) => list.iter_mut().for_each(forbid_others),
        _ => {}
    }
}

/// Whether the schema describes the output of this command.
pub fn has(command: &str) -> bool {
    STRICT["$defs"].get(command).is_some()
}

/// The command that a command line names: "list", "persist add".
fn command(words: &[&str]) -> String {
    let inner = matches!(words, ["persist" | "excludedportrange" | "fleet", ..]);
    words[..if inner { 2 } else { 1 }].join(" ")
}

/// Check that the output of this command line fits, a line at a time. Without `--json` nothing is checked. A command
/// that failed may have printed a refusal instead.
///
/// # Panics
///
/// If it does not.
#[track_caller]
pub fn check(words: &[&str], out: &str, failed: bool) {
    if !words.contains(&"--json") || words.contains(&"run") {
        return;
    }
    let reference = |name: &str| json!({ "$ref": format!("#/$defs/{}", name.replace(' ', "%20")) });
    let mut schema = STRICT.clone();
    let kinds = if failed { vec![command(words), "refusal".into()] } else { vec![command(words)] };
    schema["anyOf"] = kinds.iter().map(|name| reference(name)).collect();
    let validator = jsonschema::validator_for(&schema).unwrap();
    for line in out.lines() {
        let value: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        let wrong: Vec<String> =
            validator.iter_errors(&value).map(|error| format!("{}: {error}", error.instance_path())).collect();
        assert!(wrong.is_empty(), "{words:?} prints {line}\n{}", wrong.join("\n"));
    }
}
