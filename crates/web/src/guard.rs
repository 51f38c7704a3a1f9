//! Which requests are answered.
//!
//! Every page that a browser on this machine shows can send requests to this address. A page from elsewhere cannot read
//! answers of another origin, unless its own name leads here (DNS rebinding): then the browser sends that name as the
//! Host. So only requests for known names are answered, and no request that a page from elsewhere made. A request can
//! change nothing: there is only GET.

use std::collections::BTreeSet;

use axum::{
    extract::{Request, State},
    http::{
        HeaderMap, HeaderName, HeaderValue, Method, StatusCode,
        header::{self, HOST, ORIGIN},
    },
    middleware::Next,
    response::{IntoResponse, Response},
};

use crate::listen::Listen;

/// Nothing from elsewhere, nothing inline, no frames, no forms.
pub(crate) const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                                 base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const HEADERS: [(HeaderName, &str); 6] = [
    (header::CONTENT_SECURITY_POLICY, POLICY),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::CACHE_CONTROL, "no-store"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
];

/// The names that are answered.
#[derive(Clone, Debug)]
pub(crate) struct Guard {
    hosts: BTreeSet<String>,
}

impl Guard {
    /// For a server that listens there; `more` are names that the administrator gave.
    pub(crate) fn new(listen: &Listen, more: &[String]) -> Self {
        let mut hosts: BTreeSet<String> = more.iter().map(|host| host.to_ascii_lowercase()).collect();
        match listen {
            Listen::Tcp(address) => {
                let port = address.port();
                let mut names = Vec::new();
                if !address.ip().is_unspecified() {
                    let name = address.to_string();
                    names.extend(name.rsplit_once(':').map(|(name, _)| name.to_owned()));
                }
                if address.ip().is_loopback() || address.ip().is_unspecified() {
                    names.extend(["localhost", "127.0.0.1", "[::1]"].map(str::to_owned));
                }
                for name in names {
                    hosts.insert(format!("{name}:{port}"));
                    if port == 80 {
                        hosts.insert(name);
                    }
                }
            }
            // A browser gets here only through a proxy, and the names of the proxy are in `more`.
            Listen::Unix(_) => drop(hosts.insert("localhost".into())),
        }
        Self { hosts }
    }

    fn knows(&self, host: &str) -> bool {
        self.hosts.contains(&host.to_ascii_lowercase())
    }

    /// Whether a request is answered; if not, the status and the reason.
    fn check(&self, request: &Request) -> Result<(), (StatusCode, &'static str)> {
        let headers = request.headers();
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return Err((StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD: nothing can be changed here"));
        }
        let mut hosts = headers.get_all(HOST).iter();
        let (Some(host), None) = (hosts.next(), hosts.next()) else {
            return Err((StatusCode::BAD_REQUEST, "a request has one Host"));
        };
        let target = request.uri().authority().map(ToString::to_string);
        if ![host.to_str().ok(), target.as_deref().or(host.to_str().ok())]
            .iter()
            .all(|name| name.is_some_and(|name| self.knows(name)))
        {
            let why =
                "this Host is not answered; open the address that portkeep-web printed, or add the name with --host";
            return Err((StatusCode::MISDIRECTED_REQUEST, why));
        }
        if !self.is_from_here(headers) {
            return Err((StatusCode::FORBIDDEN, "a page from elsewhere asked for this"));
        }
        Ok(())
    }

    /// Whether the request does not come from a page of another origin. A link on such a page may lead here, because
    /// that page cannot read the answer.
    fn is_from_here(&self, headers: &HeaderMap) -> bool {
        let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
        let own = |origin: &str| {
            let host = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
            host.is_some_and(|host| self.knows(host))
        };
        let link = text("sec-fetch-mode") == Some("navigate") && text("sec-fetch-dest") == Some("document");
        let site = match text("sec-fetch-site") {
            None | Some("same-origin" | "none") => true,
            Some(_) => link,
        };
        site && headers.get_all(ORIGIN).iter().all(|origin| origin.to_str().is_ok_and(own))
    }
}

/// Refuse requests that may not be answered, and put the headers on every answer.
pub(crate) async fn guard(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    let mut response = match guard.check(&request) {
        Ok(()) => next.run(request).await,
        Err((status, why)) => {
            let mut response = (status, format!("{why}\n")).into_response();
            if status == StatusCode::METHOD_NOT_ALLOWED {
                response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            }
            response
        }
    };
    for (name, value) in HEADERS {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    fn here() -> Guard {
        Guard::new(&"127.0.0.1:7676".parse().unwrap(), &["Ports.Example".to_owned()])
    }

    fn status(guard: &Guard, method: Method, headers: &[(&str, &str)]) -> StatusCode {
        let mut request = axum::http::Request::builder().method(method).uri("/api/map");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        guard.check(&request.body(Body::empty()).unwrap()).map_or_else(|(status, _)| status, |()| StatusCode::OK)
    }

    fn get(headers: &[(&str, &str)]) -> StatusCode {
        status(&here(), Method::GET, headers)
    }

    #[test]
    fn only_known_hosts_are_answered() {
        for host in ["127.0.0.1:7676", "localhost:7676", "LOCALHOST:7676", "[::1]:7676", "ports.example"] {
            assert_eq!(get(&[("host", host)]), StatusCode::OK, "{host}");
        }
        for host in ["evil.example:7676", "localhost", "127.0.0.1", "localhost:80", "127.0.0.1:7676.evil.example", ""] {
            assert_eq!(get(&[("host", host)]), StatusCode::MISDIRECTED_REQUEST, "{host}");
        }
        assert_eq!(get(&[]), StatusCode::BAD_REQUEST);
        assert_eq!(get(&[("host", "localhost:7676"), ("host", "evil.example")]), StatusCode::BAD_REQUEST);
    }

    #[test]
    fn a_target_with_another_host_is_not_answered() {
        let request = axum::http::Request::builder().uri("http://evil.example/").header("host", "localhost:7676");
        let refused = here().check(&request.body(Body::empty()).unwrap()).unwrap_err();
        assert_eq!(refused.0, StatusCode::MISDIRECTED_REQUEST);
    }

    #[test]
    fn pages_from_elsewhere_get_nothing() {
        let host = ("host", "127.0.0.1:7676");
        for origin in ["http://127.0.0.1:7676", "http://localhost:7676", "https://ports.example"] {
            assert_eq!(get(&[host, ("origin", origin)]), StatusCode::OK, "{origin}");
        }
        for origin in ["http://evil.example", "null", "http://127.0.0.1", "http://127.0.0.1:7677", "file://"] {
            assert_eq!(get(&[host, ("origin", origin)]), StatusCode::FORBIDDEN, "{origin}");
        }
        for site in ["cross-site", "same-site"] {
            assert_eq!(get(&[host, ("sec-fetch-site", site)]), StatusCode::FORBIDDEN);
            assert_eq!(get(&[host, ("sec-fetch-site", site), ("sec-fetch-mode", "no-cors")]), StatusCode::FORBIDDEN);
            let link = [host, ("sec-fetch-site", site), ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "document")];
            assert_eq!(get(&link), StatusCode::OK);
            let frame = [host, ("sec-fetch-site", site), ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "iframe")];
            assert_eq!(get(&frame), StatusCode::FORBIDDEN);
        }
        assert_eq!(get(&[host, ("sec-fetch-site", "same-origin")]), StatusCode::OK);
        assert_eq!(get(&[host, ("sec-fetch-site", "none")]), StatusCode::OK);
    }

    #[test]
    fn nothing_but_get_is_answered() {
        let host = [("host", "localhost:7676")];
        assert_eq!(status(&here(), Method::HEAD, &host), StatusCode::OK);
        for method in [Method::POST, Method::PUT, Method::DELETE, Method::PATCH, Method::OPTIONS, Method::TRACE] {
            assert_eq!(status(&here(), method, &host), StatusCode::METHOD_NOT_ALLOWED);
        }
    }

    #[test]
    fn a_unix_socket_answers_to_localhost_and_to_names_that_were_given() {
        let guard = Guard::new(&"unix:/run/web.sock".parse().unwrap(), &["ports.example".to_owned()]);
        for (host, answered) in [("localhost", true), ("ports.example", true), ("127.0.0.1:7676", false)] {
            assert_eq!(status(&guard, Method::GET, &[("host", host)]) == StatusCode::OK, answered, "{host}");
        }
    }

    #[test]
    fn an_address_in_the_network_is_answered_to_itself_only() {
        let guard = Guard::new(&"192.0.2.7:80".parse().unwrap(), &[]);
        for (host, answered) in [("192.0.2.7:80", true), ("192.0.2.7", true), ("localhost", false)] {
            assert_eq!(status(&guard, Method::GET, &[("host", host)]) == StatusCode::OK, answered, "{host}");
        }
    }
}
