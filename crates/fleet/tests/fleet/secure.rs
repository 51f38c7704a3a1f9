//! etcd with TLS, certificates of clients, and users.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::Command,
};

use crate::world::{FLEET, Fleet};

/// Files in PEM: `ca.pem`, and for each name a key and a certificate of the authority.
fn certificates(folder: &Path) {
    let run = |words: &[&str]| {
        let output = Command::new("openssl").current_dir(folder).args(words).output().expect("openssl");
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
    for authority in ["ca", "other"] {
        let (key_file, file) = (format!("{authority}.key"), format!("{authority}.pem"));
        let subject = format!("/CN={authority}");
        run(&[&["req", "-x509"], &key[..], &["-keyout", &key_file, "-out", &file, "-days", "2", "-subj", &subject]]
            .concat());
    }
    for name in ["server", "client"] {
        let files = ["key", "csr", "pem", "ext"].map(|kind| format!("{name}.{kind}"));
        let [key_file, request, file, extensions] = &files;
        // etcd's gateway refuses certificates of clients that name a user, where users are enabled.
        let subject = if name == "client" { "/O=fleet" } else { "/CN=server" };
        fs::write(folder.join(extensions), "subjectAltName=IP:10.77.0.1,IP:127.0.0.1\n").unwrap();
        run(&[&["req"], &key[..], &["-keyout", key_file, "-out", request, "-subj", subject]].concat());
        let sign =
            ["x509", "-req", "-in", request, "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2"];
        run(&[&sign[..], &["-extfile", extensions, "-out", file]].concat());
    }
}

#[test]
fn f2_wrong_credentials_are_refused_and_right_ones_serve() {
    let folder = tempfile::tempdir().unwrap();
    certificates(folder.path());
    let file = |name: &str| folder.path().join(name).display().to_string();
    fs::write(file("password"), "secret\nnot this\n").unwrap();
    fs::write(file("wrong"), "guess\n").unwrap();
    let mode = |name: &str, mode| fs::set_permissions(file(name), Permissions::from_mode(mode)).unwrap();
    for secret in ["password", "wrong", "client.key"] {
        mode(secret, 0o640);
    }
    let options = [
        "--client-cert-auth".to_owned(),
        format!("--cert-file={}", file("server.pem")),
        format!("--key-file={}", file("server.key")),
        format!("--trusted-ca-file={}", file("ca.pem")),
    ];
    let tls = format!(
        "[tls]\nca = {:?}\ncertificate = {:?}\nkey = {:?}\n",
        file("ca.pem"),
        file("client.pem"),
        file("client.key")
    );
    let settings = format!("user = \"fleet\"\npassword_file = {:?}\n{tls}", file("password"));
    let Some(mut fleet) = Fleet::with("f2s", 1, "https", &options, &settings) else { return };
    let certificates =
        ["--cacert", &file("ca.pem"), "--cert", &file("client.pem"), "--key", &file("client.key")].map(str::to_owned);
    fleet.cluster.credentials = certificates.to_vec();
    fleet.cluster.ready();
    // As in the guide, except that the password is on standard input.
    for words in [
        "user add root:secret",
        "user grant-role root root",
        "user add fleet:secret",
        "role add fleet",
        "role grant-permission fleet --prefix=true readwrite /portkeep/",
        "user grant-role fleet fleet",
        "user add other:secret",
        "user add reader:secret",
        "role add reader",
        "role grant-permission reader --prefix=true read /portkeep/",
        "user grant-role reader reader",
        "auth enable",
    ] {
        let words: Vec<&str> = words.split(' ').collect();
        let output = fleet.cluster.etcdctl(&words).output().unwrap();
        assert!(output.status.success(), "{words:?}: {output:?}");
    }
    fleet.cluster.credentials.extend(["--user".to_owned(), "root:secret".to_owned()]);
    fleet.add("a");
    fleet.joined("a");
    let job = fleet.acquire("a", &["--hosts", "a", "--name", "train"]);

    let wrong: [(&[&str], &[&str]); 6] = [
        (&["--password-file", &file("wrong")], &["etcd does not accept the user", "invalid user ID or password"]),
        (&["--etcd-user", "other", "--password-file", &file("password")], &["does not accept", "permission denied"]),
        (&["--ca", &file("other.pem")], &["etcd cannot be reached", "UnknownIssuer"]),
        (&["--ca", &file("ca.pem")], &["etcd cannot be reached", "10.77.0.1"]),
        (&["--ca", &file("password")], &["has no certificate"]),
        (&["--endpoints", "https://10.77.0.9:2379"], &["etcd cannot be reached", "10.77.0.9"]),
    ];
    for (options, expected) in wrong {
        let refused = fleet.fleet("a", &[options, &["acquire", "--hosts", "a"]].concat());
        refused.fails(1, expected);
        assert_eq!(fleet.enforced("a").len(), 1);
    }
    // No user.
    fleet.settings.clone_from(&tls);
    fleet.write_configuration("a");
    for words in [&["acquire", "--hosts", "a"][..], &["wait", "x", "--timeout", "5"], &["status"], &["list"]] {
        fleet.fleet("a", words).fails(1, &["etcd does not accept the user", "user name is empty"]);
    }
    fleet.settings.clone_from(&settings);
    fleet.write_configuration("a");
    // A user of etcd that can only read.
    let reader = ["--etcd-user", "reader", "--password-file", &file("password")];
    fleet.fleet("a", &[&reader[..], &["show", "train"]].concat()).ok();
    fleet.fleet("a", &[&reader[..], &["wait", "train"]].concat()).ok();
    fleet.fleet("a", &[&reader[..], &["acquire", "--hosts", "a"]].concat()).fails(1, &["does not accept"]);
    // A member that starts anew knows no token.
    fleet.cluster.members[0].kill();
    fleet.cluster.members[0].start();
    fleet.cluster.ready();
    fleet.acquire("a", &["--hosts", "a", "--name", "other"]).end();
    job.end();
    fleet.is_free();
}

#[test]
fn f11_secrets_that_every_user_can_read_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    certificates(folder.path());
    let file = |name: &str| folder.path().join(name).display().to_string();
    fs::write(file("password"), "secret\n").unwrap();
    let configuration = file("fleet.toml");
    let text = format!(
        "endpoints = [\"https://127.0.0.1:1\"]\nrange = \"20000-20199\"\nuser = \"fleet\"\npassword_file = {:?}\n\
         [tls]\nca = {:?}\ncertificate = {:?}\nkey = {:?}\n",
        file("password"),
        file("ca.pem"),
        file("client.pem"),
        file("client.key")
    );
    fs::write(&configuration, text).unwrap();
    let list = || {
        portkeep_testkit::Outcome::from(
            Command::new(FLEET).args(["--config", &configuration, "list"]).output().unwrap(),
        )
    };
    let mode = |name: &str, mode| fs::set_permissions(file(name), Permissions::from_mode(mode)).unwrap();
    let secrets = ["password", "client.key"];
    secrets.iter().for_each(|secret| mode(secret, 0o640));
    list().fails(1, &["etcd cannot be reached"]);
    for secret in secrets {
        mode(secret, 0o644);
        list().fails(1, &["every user of this host can read", &file(secret), "chmod o="]);
        mode(secret, 0o600);
    }
}
