//! A client of etcd's JSON gateway: one blocking call for each request.

mod client;
mod error;
mod kv;
mod lease;
mod transport;
mod watch;

pub(crate) use client::Client;
pub(crate) use error::EtcdError;
pub(crate) use kv::{Compare, KeyValue, Op, Outcome, Prefix};
pub(crate) use lease::{KeepAlive, LeaseNews};
pub(crate) use watch::{Batch, Change, Interrupt, NOW, Watch};
