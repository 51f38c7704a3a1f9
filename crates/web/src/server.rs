//! The routes, and how many requests are served at the same time.

use std::{
    convert::Infallible,
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use axum::{
    Router,
    body::Bytes,
    extract::{Query, State},
    http::{StatusCode, header::CONTENT_TYPE},
    middleware,
    response::{
        IntoResponse, Response, Sse,
        sse::{Event, KeepAlive},
    },
    routing::get,
};
use futures_util::{
    future::{Either, select},
    pin_mut, stream,
};
use portkeep::PortRange;
use serde::{Deserialize, Serialize};
use tokio::{
    net::{TcpListener, UnixListener},
    runtime,
    signal::unix::{SignalKind, signal},
    sync::{Mutex, Semaphore, broadcast::error::RecvError},
    task::spawn_blocking,
};

use crate::{
    assets,
    data::{self, Map},
    feed::{Feed, Message},
    guard::{Guard, guard},
    listen::{Listen, Listener},
    metrics,
};

/// How long one map is sent to all pages: several pages ask at the same time.
const FRESH: Duration = Duration::from_millis(250);
/// Pages that can follow events at a time.
const PAGES: usize = 64;
/// Requests that search all processes at a time.
const WALKS: usize = 2;

const JSON: &str = "application/json";

/// The last map, and of which namespace it is.
type Last = Option<(Instant, Option<u64>, Bytes)>;

/// Shared by all requests.
#[derive(Debug)]
struct Shared {
    feed: Arc<Feed>,
    /// Locked while a map is made, so one is made at a time.
    last: Mutex<Last>,
    pages: Arc<Semaphore>,
    walks: Semaphore,
}

/// Serve until a signal ends it.
pub(crate) fn run(listen: &Listen, hosts: &[String]) -> anyhow::Result<()> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build().context("starting")?;
    runtime.block_on(async {
        let (listener, address) = Listener::open(listen).await?;
        let app = app(Guard::new(&address, hosts), Feed::start());
        println!("listening on {address}");
        if let Listen::Tcp(address) = address
            && !address.ip().is_loopback()
        {
            eprintln!(
                "warning: {address} can be reached from other machines, and there is no password. Listen on a loopback \
                 address or a Unix socket, behind a proxy that asks for one."
            );
        }
        let signals = stopped()?;
        pin_mut!(signals);
        match listener {
            Listener::Tcp(listener) => until(signals, serve_tcp(listener, app)).await,
            Listener::Unix(listener, _remove) => until(signals, serve_unix(listener, app)).await,
        }
    })
}

async fn serve_tcp(listener: TcpListener, app: Router) -> io::Result<()> {
    axum::serve(listener, app).await
}

async fn serve_unix(listener: UnixListener, app: Router) -> io::Result<()> {
    axum::serve(listener, app).await
}

/// Pages may be open for days, so a signal ends them, too.
async fn until(
    signals: impl Future<Output = ()> + Unpin,
    served: impl Future<Output = io::Result<()>>,
) -> anyhow::Result<()> {
    pin_mut!(served);
    match select(signals, served).await {
        Either::Left(_) => Ok(()),
        Either::Right((result, _)) => result.context("serving"),
    }
}

fn stopped() -> io::Result<impl Future<Output = ()>> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        let (terminated, interrupted) = (terminate.recv(), interrupt.recv());
        pin_mut!(terminated, interrupted);
        select(terminated, interrupted).await;
    })
}

fn app(allowed: Guard, feed: Arc<Feed>) -> Router {
    let shared = Arc::new(Shared {
        feed,
        last: Mutex::new(None),
        pages: Arc::new(Semaphore::new(PAGES)),
        walks: Semaphore::new(WALKS),
    });
    Router::new()
        .route("/api/map", get(map))
        .route("/api/who", get(who))
        .route("/api/namespaces", get(namespaces))
        .route("/events", get(events))
        .route("/metrics", get(measure))
        .with_state(shared)
        .merge(assets::routes())
        .layer(middleware::from_fn_with_state(allowed, guard))
}

/// The network namespace of a request.
#[derive(Debug, Deserialize)]
struct Where {
    netns: Option<u64>,
}

/// The port of a request, and its network namespace.
#[derive(Debug, Deserialize)]
struct Which {
    port: String,
    netns: Option<u64>,
}

async fn map(State(shared): State<Arc<Shared>>, Query(Where { netns }): Query<Where>) -> Response {
    shared.feed.look();
    let mut last = shared.last.lock().await;
    if let Some((when, of, bytes)) = &*last
        && *of == netns
        && when.elapsed() < FRESH
    {
        return json_bytes(bytes.clone());
    }
    let made = blocking(move || data::within(netns, Map::here).and_then(|map| to_json(&map))).await;
    match made {
        Ok(bytes) => {
            *last = Some((Instant::now(), netns, bytes.clone()));
            json_bytes(bytes)
        }
        Err(error) => failed(&error),
    }
}

async fn who(State(shared): State<Arc<Shared>>, Query(Which { port, netns }): Query<Which>) -> Response {
    let Some(port) = port.parse().ok().and_then(|port| PortRange::single(port).ok()) else {
        let why = format!("port={port}: a port is a number from 1 to 65535\n");
        return (StatusCode::BAD_REQUEST, why).into_response();
    };
    let _walk = shared.walks.acquire().await;
    answer(move || data::within(netns, |own| data::who(port, own))).await
}

async fn namespaces(State(shared): State<Arc<Shared>>) -> Response {
    let _walk = shared.walks.acquire().await;
    answer(data::all_namespaces).await
}

async fn measure(State(shared): State<Arc<Shared>>) -> Response {
    shared.feed.look();
    let (feed, _walk) = (shared.feed.clone(), shared.walks.acquire().await);
    match blocking(move || metrics::page(&feed)).await {
        Ok(text) => ([(CONTENT_TYPE, metrics::KIND)], text).into_response(),
        Err(error) => failed(&error),
    }
}

async fn events(State(shared): State<Arc<Shared>>) -> Response {
    let Ok(permit) = shared.pages.clone().try_acquire_owned() else {
        return (StatusCode::SERVICE_UNAVAILABLE, format!("{PAGES} pages follow events already\n")).into_response();
    };
    let (first, rest) = shared.feed.messages();
    let stream = stream::unfold((Some(first), rest, permit), |(first, mut rest, permit)| async move {
        let message = match first {
            Some(first) => first,
            None => match rest.recv().await {
                Ok(message) => message,
                Err(RecvError::Lagged(missed)) => Message { kind: "missed", json: missed.to_string().into() },
                Err(RecvError::Closed) => return None,
            },
        };
        let event = Event::default().event(message.kind).data(&*message.json);
        Some((Ok::<_, Infallible>(event), (None, rest, permit)))
    });
    Sse::new(stream).keep_alive(KeepAlive::new().interval(Duration::from_secs(30))).into_response()
}

fn to_json(value: &impl Serialize) -> io::Result<Bytes> {
    Ok(serde_json::to_vec(value)?.into())
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    spawn_blocking(work).await.map_err(io::Error::other)?
}

async fn answer<T: Serialize>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> Response {
    match blocking(move || to_json(&work()?)).await {
        Ok(bytes) => json_bytes(bytes),
        Err(error) => failed(&error),
    }
}

fn json_bytes(bytes: Bytes) -> Response {
    ([(CONTENT_TYPE, JSON)], bytes).into_response()
}

fn failed(error: &io::Error) -> Response {
    let status = match error.kind() {
        io::ErrorKind::NotFound => StatusCode::NOT_FOUND,
        io::ErrorKind::PermissionDenied => StatusCode::FORBIDDEN,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    (status, format!("{error}\n")).into_response()
}
