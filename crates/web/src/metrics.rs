//! Metrics in OpenMetrics.

use std::{fmt, io, sync::atomic::AtomicU64};

use portkeep::{
    Info, State, Transport,
    persistent::{Connection, protocol::Latency},
};
use prometheus_client::{
    encoding::{EncodeMetric, MetricEncoder, NoLabelSet, text::encode},
    metrics::{MetricType, TypedMetric, counter::Counter, family::Family, gauge::Gauge, info::Info as Facts},
    registry::{Registry, Unit},
};

use crate::{
    data::{self, Map, PATIENCE},
    feed::Feed,
};

/// The media type.
pub(crate) const KIND: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Labels = Vec<(&'static str, String)>;
type Gauges = Family<Labels, Gauge>;
type Counters = Family<Labels, Counter<u64, AtomicU64>>;

/// A histogram of the agent, with the counts that the agent reports.
#[derive(Debug)]
struct Distribution(Latency);

impl EncodeMetric for Distribution {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), fmt::Error> {
        let counted: u64 = self.0.buckets.iter().map(|(_, count)| count).sum();
        let mut buckets = self.0.buckets.clone();
        buckets.push((f64::INFINITY, self.0.count.saturating_sub(counted)));
        encoder.encode_histogram::<NoLabelSet>(self.0.sum, self.0.count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

impl TypedMetric for Distribution {
    const TYPE: MetricType = MetricType::Histogram;
}

fn labels<const N: usize>(labels: [(&'static str, &str); N]) -> Labels {
    labels.map(|(name, value)| (name, value.to_owned())).into()
}

/// The processes that may use a reservation: `process`, `unit` and so on.
fn scope(info: &Info) -> String {
    match (&info.scope, &info.audience) {
        (Some(scope), _) => scope.to_string(),
        (None, Some(audience)) => audience.kind().to_owned(),
        (None, None) => "unit or cgroup".into(),
    }
}

/// The page.
///
/// # Errors
///
/// If nothing can be found out about this network namespace.
pub(crate) fn page(feed: &Feed) -> io::Result<String> {
    let map = data::within(None, Map::here)?;
    let mut registry = Registry::with_prefix("portkeep");
    of_machine(&mut registry, &map);
    of_reservations(&mut registry, &map);
    of_events(&mut registry, feed);
    of_agent(&mut registry);
    let mut text = String::new();
    encode(&mut text, &registry).map_err(io::Error::other)?;
    Ok(text)
}

fn gauge(registry: &mut Registry, name: &str, help: &str, value: i64) {
    let gauge: Gauge = Gauge::default();
    gauge.set(value);
    registry.register(name, help, gauge);
}

fn of_machine(registry: &mut Registry, map: &Map) {
    let build = Facts::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
    registry.register("build", "Version of portkeep-web", build);
    gauge(registry, "up", "Whether kernel enforcement is up", map.up.into());
    gauge(registry, "agent_up", "Whether an agent runs", map.agent.into());
    let answers = map.agent_answers == Some(true);
    gauge(registry, "agent_answers", "Whether the agent answers on its socket", answers.into());
    let pool = map.pool.map_or(0, |pool| pool.count().into());
    gauge(registry, "pool_ports", "Ports in the pool", pool);
}

fn of_reservations(registry: &mut Registry, map: &Map) {
    let (reservations, ports, bound) = (Gauges::default(), Gauges::default(), Gauges::default());
    for state in [State::Active, State::Pending, State::Waiting, State::Conflict] {
        for kind in ["runtime", "persistent"] {
            drop(reservations.get_or_create(&labels([("state", &state.to_string()), ("kind", kind)])));
        }
    }
    for transport in Transport::ALL {
        drop(bound.get_or_create(&labels([("transport", &transport.to_string())])));
    }
    for info in &map.reservations {
        let kind = if info.persistent { "persistent" } else { "runtime" };
        reservations.get_or_create(&labels([("state", &info.state.to_string()), ("kind", kind)])).inc();
        if info.state != State::Active {
            continue;
        }
        for transport in info.transports.iter() {
            let labels = labels([("transport", &transport.to_string()), ("scope", &scope(info)), ("kind", kind)]);
            ports.get_or_create(&labels).inc_by(info.ports.count().into());
        }
    }
    for transport in Transport::ALL {
        let mut in_use = portkeep_core::PortSet::default();
        for sockets in map.sockets.iter().filter(|sockets| sockets.transport == transport) {
            in_use = in_use.union(&sockets.ports);
        }
        let active = map.reservations.iter().filter(|info| info.state == State::Active);
        let reserved = active.filter(|info| info.transports.contains(transport));
        let reserved = reserved.flat_map(|info| info.ports.blocks().iter().copied());
        let both = in_use.intersection(&reserved.collect()).len();
        bound.get_or_create(&labels([("transport", &transport.to_string())])).set(both.into());
    }
    registry.register("reservations", "Reservations of this network namespace", reservations);
    registry.register("reserved_ports", "Ports in reservations that are in force", ports);
    registry.register("reserved_ports_in_use", "Reserved ports that have a socket or a connection", bound);
}

fn of_events(registry: &mut Registry, feed: &Feed) {
    let tally = feed.tally();
    gauge(registry, "events_followed", "Whether events are counted", feed.following().following.into());
    for (name, help, number) in [
        ("grants", "Reservations that came into force", tally.granted),
        ("denials", "Requests for particular ports that were not granted", tally.denied),
        ("ends", "Reservations that ended", tally.ended),
        ("exhausted", "Binds to port 0 that found their private ephemeral range used up", tally.exhausted),
    ] {
        let counter: Counter<u64, AtomicU64> = Counter::default();
        counter.inc_by(number);
        registry.register(name, help, counter);
    }
    let refusals = Counters::default();
    for (unit, number) in tally.refused {
        refusals.get_or_create(&labels([("unit", &unit)])).inc_by(number);
    }
    registry.register("refusals", "Binds of outsiders that were refused, by the unit of the outsider", refusals);
}

/// The agent's own metrics, if the agent lets this user read its counters.
fn of_agent(registry: &mut Registry) {
    let Ok(counters) = Connection::open_within(PATIENCE).and_then(|mut agent| agent.counters()) else { return };
    gauge(registry, "machine_reservations", "Reservations in all network namespaces", counters.reservations.into());
    let ports = i64::try_from(counters.ports).unwrap_or(i64::MAX);
    gauge(registry, "machine_reserved_ports", "Ports in reservations, in all network namespaces", ports);
    gauge(
        registry,
        "pending_requests",
        "Requests for particular ports that wait for the agent",
        counters.pending.into(),
    );
    let refused: Counter<u64, AtomicU64> = Counter::default();
    refused.inc_by(counters.refused);
    registry.register(
        "refused_binds",
        "Binds of outsiders that were refused since kernel enforcement came up",
        refused,
    );
    registry.register_with_unit(
        "pending_latency",
        "How long requests for particular ports waited for the agent",
        Unit::Seconds,
        Distribution(counters.latency),
    );
    let (used, limit) = (Gauges::default(), Gauges::default());
    for quota in counters.quotas {
        let account = labels([("account", &quota.account)]);
        used.get_or_create(&account).set(quota.used.into());
        if let Some(most) = quota.limit {
            limit.get_or_create(&account).set(most.into());
        }
    }
    registry.register("quota_used_ports", "Ports that an account holds", used);
    registry.register("quota_limit_ports", "Ports that an account may hold; none of accounts without a limit", limit);
}
