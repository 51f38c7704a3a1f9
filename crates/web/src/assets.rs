//! The page, embedded.

use axum::{
    Router,
    http::header::CONTENT_TYPE,
    response::{IntoResponse, Response},
    routing::get,
};

macro_rules! assets {
    ($($path:literal: $file:literal, $kind:literal;)*) => {
        /// A route for each file.
        pub(crate) fn routes() -> Router {
            Router::new()$(.route($path, get(async || file($kind, include_str!(concat!("../assets/", $file))))))*
        }
    };
}

assets! {
    "/": "index.html", "text/html; charset=utf-8";
    "/style.css": "style.css", "text/css; charset=utf-8";
    "/page.js": "page.js", "text/javascript; charset=utf-8";
    "/map.js": "map.js", "text/javascript; charset=utf-8";
    "/model.js": "model.js", "text/javascript; charset=utf-8";
    "/icon.svg": "icon.svg", "image/svg+xml";
}

fn file(kind: &'static str, text: &'static str) -> Response {
    ([(CONTENT_TYPE, kind)], text).into_response()
}
