use super::*;

fn parse(text: &str) -> Result<Config, Vec<String>> {
    Config::parse(Path::new("c"), text).map_err(|wrong| wrong.iter().map(ToString::to_string).collect())
}

#[test]
fn everything_can_be_set() {
    let config = parse(
        r#"
pool = "20000-20999"
deny_errno = "EACCES"
administrators = "netadmin"
watchers = 42
enforce = "/sys/fs/cgroup/a"
serve = "/sys/fs/cgroup/a/b"
state_dir = "/srv/portkeep"
[quota]
default = 7
containers = 8
[quota.users]
alice = 4096
bob = "unlimited"
1000 = 5
[quota.groups]
web = 1
[privileged]
users = ["www-data", 33]
groups = ["web"]
[events]
per_second = 0
"#,
    )
    .unwrap();
    let name = |name: &str| Account::Name(name.into());
    let expected = Config {
        pool: PortRange::inclusive(20000, 20999).ok(),
        deny_errno: Errno::EACCES,
        administrators: Some(name("netadmin")),
        watchers: Some(Account::Id(42)),
        enforce: Some("/sys/fs/cgroup/a".into()),
        serve: Some("/sys/fs/cgroup/a/b".into()),
        state_dir: "/srv/portkeep".into(),
        quota: Quota {
            default: Limit::Ports(7),
            containers: Limit::Ports(8),
            users: [
                (name("alice"), Limit::Ports(4096)),
                (name("bob"), Limit::Unlimited),
                (Account::Id(1000), Limit::Ports(5)),
            ]
            .into(),
            groups: [(name("web"), Limit::Ports(1))].into(),
        },
        privileged: Privileged { users: vec![name("www-data"), Account::Id(33)], groups: vec![name("web")] },
        events: Events { per_second: 0 },
    };
    assert_eq!(config, expected);
    assert_eq!(parse("").unwrap(), Config::default());
    assert_eq!(parse("pool = \"none\"").unwrap().pool, None);
}

/// The line that sets a key of the table to a value.
fn setting(key: &Key, value: &str) -> String {
    match key.name.replace("NAME", "someone").rsplit_once('.') {
        None => format!("{} = {value}\n", key.name),
        Some((table, key)) => format!("[{table}]\n{key} = {value}\n"),
    }
}

#[test]
fn the_table_of_keys_is_what_the_parser_knows() {
    for key in KEYS {
        let set = parse(&setting(key, key.example)).unwrap_or_else(|wrong| panic!("{}: {wrong:?}", key.name));
        assert_ne!(set, Config::default(), "{} does nothing", key.name);
        // A default that is TOML is what is there when nothing is said.
        if key.default.starts_with(['"', '[']) || key.default.parse::<u32>().is_ok() {
            assert_eq!(parse(&setting(key, key.default)).unwrap(), Config::default(), "{}", key.name);
        }
        assert!(key.text.ends_with('.') && !key.kind.is_empty(), "{}", key.name);
        // No key accepts every value.
        assert!(parse(&setting(key, "1.5")).is_err(), "{}", key.name);
    }
}

#[test]
fn one_mistake_refuses_the_file_and_all_are_reported() {
    let wrong = parse(
        "pol = 1\npool = \"x\"\ndeny_errno = \"EPERM\"\nadministrators = \"\"\nenforce = \"a\"\n[quota]\ndefault = -1\nuser = 1\n\
         [quota.users]\n\"a b\" = 1\nc = \"lots\"\n[privileged]\nusers = \"x\"\ngroups = [true]\n[events]\nper_second = \"\"\n",
    )
    .unwrap_err();
    let places: Vec<&str> = wrong.iter().map(|w| w.split(": ").next().unwrap()).collect();
    let expected = [
        "c:1:1", "c:2:8", "c:3:14", "c:4:18", "c:5:11", "c:7:11", "c:8:1", "c:10:1", "c:11:5", "c:13:9", "c:14:11",
        "c:16:14",
    ];
    assert_eq!(places, expected, "{wrong:#?}");
    assert!(wrong[0].ends_with("help: did you mean `pool`?"), "{}", wrong[0]);
    assert!(wrong[6].ends_with("help: did you mean `users`?"), "{}", wrong[6]);
    let unknown = parse("zzz = 1").unwrap_err();
    assert!(
        unknown[0].ends_with("the keys here are pool, deny_errno, administrators, watchers, enforce, serve, state_dir, quota, privileged, events"),
        "{unknown:?}"
    );
}

#[test]
fn a_file_decides_about_the_keys_that_it_contains() {
    let text = "pool = \"none\"\n[quota]\ndefault = 1024\n[quota.users]\nalice = 1\n";
    let (_, given) = Config::parse_given(Path::new("c"), text).unwrap();
    assert!(["pool", "quota.default", "quota.users"].into_iter().all(|key| given.has(key)));
    assert!(!["deny_errno", "quota", "quota.containers", "quota.groups"].into_iter().any(|key| given.has(key)));
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(Config::load_given(&dir.path().join("portkeep.toml")).unwrap().1, Given::default());
}

#[test]
fn no_file_is_the_defaults() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(Config::load(&dir.path().join("portkeep.toml")).unwrap(), Config::default());
    assert!(Config::load(dir.path()).unwrap_err()[0].to_string().contains("is a directory"));
}
