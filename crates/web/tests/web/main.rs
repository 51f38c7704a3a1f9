//! The real server: its answers, its metrics, and its page in a real browser.

mod browser;
mod chromium;
mod http;
mod metrics;
mod scene;
mod server;
