//! HTTP and TLS.

use std::{fs, path::Path, sync::Arc, time::Duration};

use anyhow::{Context, ensure};
use serde::Deserialize;
use serde_json::Value;
use ureq::{
    Agent, Body,
    http::Response,
    tls::{Certificate, ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig, parse_pem},
};

use super::error::EtcdError;
use crate::config::{Config, secret};

/// The longest wait for one answer of one endpoint.
pub(super) const PATIENCE: Duration = Duration::from_secs(3);
/// The longest answer in bytes. It is enough for the keys of a fleet of some thousand hosts.
const LONGEST: u64 = 256 << 20;

/// One attempt failed.
pub(super) enum Attempt {
    /// Another endpoint may succeed.
    Next(String),
    /// No other endpoint would succeed.
    Stop(EtcdError),
}

/// How to connect.
pub(super) fn settings(config: &Config) -> anyhow::Result<ureq::config::Config> {
    let builder = Agent::config_builder()
        .http_status_as_error(false)
        .proxy(None)
        .timeout_connect(Some(PATIENCE))
        .timeout_recv_response(Some(PATIENCE))
        .timeout_per_write(Some(PATIENCE));
    let Some(tls) = &config.tls else {
        let secure = config.endpoints.iter().find(|endpoint| endpoint.starts_with("https:"));
        ensure!(secure.is_none(), "{} requires `tls.ca` in fleet.toml: the certificate to trust", secure.unwrap());
        return Ok(builder.build());
    };
    let mut settings = TlsConfig::builder()
        .root_certs(RootCerts::new_with_certs(&certificates(&tls.ca)?))
        .unversioned_rustls_crypto_provider(Arc::new(rustls_graviola::default_provider()));
    if let Some(path) = &tls.certificate {
        let key = tls.key.as_deref().context("`tls.certificate` requires `tls.key` in fleet.toml")?;
        settings = settings.client_cert(Some(ClientCert::new_with_certs(&certificates(path)?, private_key(key)?)));
    }
    Ok(builder.tls_config(settings.build()).build())
}

fn items(path: &Path, text: &[u8]) -> anyhow::Result<Vec<PemItem<'static>>> {
    parse_pem(text).collect::<Result<_, _>>().with_context(|| format!("{} is not PEM", path.display()))
}

fn certificates(path: &Path) -> anyhow::Result<Vec<Certificate<'static>>> {
    let text = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    let found: Vec<_> = items(path, &text)?
        .into_iter()
        .filter_map(|item| if let PemItem::Certificate(certificate) = item { Some(certificate) } else { None })
        .collect();
    ensure!(!found.is_empty(), "{} has no certificate", path.display());
    Ok(found)
}

fn private_key(path: &Path) -> anyhow::Result<PrivateKey<'static>> {
    let mut items = items(path, &secret(path)?)?.into_iter();
    let found = items.find_map(|item| if let PemItem::PrivateKey(key) = item { Some(key) } else { None });
    found.with_context(|| format!("{} has no private key", path.display()))
}

/// The whole answer to a request.
pub(super) fn post(agent: &Agent, url: &str, token: Option<String>, body: &Value) -> Result<Vec<u8>, Attempt> {
    let mut answer = open(agent, url, token, body)?;
    let read = answer.body_mut().with_config().limit(LONGEST).read_to_vec();
    read.map_err(|error| Attempt::Next(error.to_string()))
}

/// The beginning of the answer to a request. Errors of etcd are recognised.
pub(super) fn open(agent: &Agent, url: &str, token: Option<String>, body: &Value) -> Result<Response<Body>, Attempt> {
    // With this header a member that has lost the others ends its watches.
    let mut request = agent.post(url).header("Grpc-Metadata-hasleader", "true").content_type("application/json");
    if let Some(token) = token {
        request = request.header("Authorization", token);
    }
    let mut answer = request.send(body.to_string()).map_err(|error| Attempt::Next(error.to_string()))?;
    if answer.status().is_success() {
        return Ok(answer);
    }
    let status = answer.status().as_u16();
    let text = answer.body_mut().read_to_string().map_err(|error| Attempt::Next(error.to_string()))?;
    Err(meaning(status, &text))
}

/// A failure as etcd reports it, with the code of gRPC.
#[derive(Deserialize)]
struct GatewayError {
    #[serde(default)]
    error: String,
    #[serde(default)]
    code: u32,
}

fn meaning(status: u16, text: &str) -> Attempt {
    const DEADLINE: u32 = 4;
    const NOT_ALLOWED: u32 = 7;
    const UNAVAILABLE: u32 = 14;
    const UNAUTHENTICATED: u32 = 16;
    let failure: GatewayError = serde_json::from_str(text)
        .unwrap_or_else(|_| GatewayError { error: format!("status {status}: {}", text.trim()), code: 0 });
    let GatewayError { error, code } = failure;
    match code {
        DEADLINE | UNAVAILABLE => Attempt::Next(error),
        UNAUTHENTICATED => Attempt::Stop(EtcdError::Token),
        _ if error.contains("space exceeded") => {
            Attempt::Stop(EtcdError::Refused(format!("{error}; it has no space left, see `etcdctl alarm list`")))
        }
        NOT_ALLOWED => Attempt::Stop(EtcdError::Credentials(error)),
        _ if about_credentials(&error) => Attempt::Stop(EtcdError::Credentials(error)),
        _ if status >= 500 => Attempt::Next(error),
        _ => Attempt::Stop(EtcdError::Refused(error)),
    }
}

/// Whether a message of etcd is about the user.
pub(super) fn about_credentials(message: &str) -> bool {
    ["permission denied", "authentication failed", "user name is empty", "authentication is not enabled"]
        .iter()
        .any(|known| message.contains(known))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_of_etcd_are_understood() {
        let text = r#"{"error":"etcdserver: requested lease not found","message":"the same","code":5}"#;
        let Attempt::Stop(EtcdError::Refused(reason)) = meaning(404, text) else { panic!() };
        assert_eq!(reason, "etcdserver: requested lease not found");
        assert!(matches!(meaning(401, r#"{"error":"x","code":16}"#), Attempt::Stop(EtcdError::Token)));
        assert!(matches!(meaning(503, r#"{"error":"etcdserver: no leader","code":14}"#), Attempt::Next(_)));
        assert!(matches!(meaning(502, "<html>"), Attempt::Next(_)));
    }
}
