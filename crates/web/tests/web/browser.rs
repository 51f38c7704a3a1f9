//! The page in a real browser.

use std::{
    io::{Read, Write},
    net::TcpListener,
    path::{Path, PathBuf},
    thread,
};

use portkeep_testkit::{World, note, process::Child, report::median};
use serde_json::Value;

use crate::{
    chromium::{Chromium, Scheme},
    scene::{Large, RESERVATIONS, Scene, rename},
    server::Server,
};

/// If it is set, the test writes the pictures of the documents anew.
const PICTURES: &str = "PORTKEEP_WRITE_PICTURES";

/// The path of a picture: among the documents, or in the folder of the test.
fn picture(folder: &Path, name: &str) -> PathBuf {
    match std::env::var_os(PICTURES) {
        Some(_) => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/guides").join(name),
        None => folder.join(name),
    }
}

/// The middle of a port in the window.
fn place(browser: &mut Chromium, transport: &str, port: u16) -> (f64, f64) {
    let expression = format!(
        "(() => {{ const map = document.getElementById('map'); map.scrollIntoView({{block: 'nearest'}}); const box = \
         map.getBoundingClientRect(); const at = map.positionOf('{transport}', {port}); return [box.left + at.x, box.top + \
         at.y]; }})()"
    );
    let value = browser.value(&expression);
    (value[0].as_f64().unwrap(), value[1].as_f64().unwrap())
}

fn loaded(browser: &mut Chromium, server: &Server) {
    browser.open(&server.address);
    browser.until("Boolean(document.body.dataset.loaded)");
}

fn search(browser: &mut Chromium, text: &str) {
    let expression = format!(
        "{{ const q = document.getElementById('query'); q.value = {text:?}; q.dispatchEvent(new Event('input')); q.focus(); }}"
    );
    browser.value(&expression);
}

fn rows(browser: &mut Chromium) -> Vec<String> {
    let rows = browser
        .value("[...document.querySelectorAll('#rows tr')].map((row) => row.innerText.replaceAll('\\t', ' | '))");
    rows.as_array().unwrap().iter().map(|row| row.as_str().unwrap().to_owned()).collect()
}

#[test]
fn the_map_shows_who_has_a_port() {
    let Some(world) = World::enter("web::browser::map") else { return };
    let Some(mut browser) = Chromium::start("web::browser::map") else { return };
    let scene = Scene::new(&world);
    let server = Server::start(scene.folder.path());
    let pictures = tempfile::tempdir().unwrap();
    browser.window(1280, 1000, Scheme::Light);
    loaded(&mut browser, &server);
    browser.until("document.getElementById('following').innerText === 'live'");
    let summary = browser.text("#summary");
    assert!(summary.contains("reservations") && summary.contains("declared and not in force"), "{summary}");

    // Two programs that are refused.
    for (name, tcp) in [("node", scene.own.ports().start()), ("python3", 30_100)] {
        let mut outsider = Child::fork(move |talk| {
            rename(name);
            talk.say(TcpListener::bind(("127.0.0.1", tcp)).is_err().into());
        });
        assert_eq!(outsider.talk.hear(), 1);
        outsider.join();
        browser.until(&format!("document.getElementById('events').innerText.includes('{name} (pid')"));
    }

    // Hover.
    let (x, y) = place(&mut browser, "udp", 16500);
    browser.mouse("mouseMoved", x, y);
    browser.until("document.getElementById('tip').innerText.includes('rtp')");
    let tip = browser.text("#tip");
    assert!(tip.contains("/udp") && tip.contains("sip.service") && tip.contains("50-rtp.toml"), "{tip}");
    browser.picture(&picture(pictures.path(), "web-map.png"));

    // A click shows who has it, with the process behind a socket.
    search(&mut browser, "5432/tcp");
    browser.key("Enter");
    browser.until("document.getElementById('who-body').innerText.includes('postgresql')");
    let who = browser.text("#who");
    for part in [
        "Port 5432",
        "postgresql.service",
        "The main database",
        &format!("pid {}", scene.process_of("postgresql.service")),
        "5432/udp",
    ] {
        assert!(who.contains(part), "{part}: {who}");
    }
    search(&mut browser, "");
    browser.value("document.getElementById('zoom-reset').click()");
    let (x, y) = place(&mut browser, "tcp", scene.own.ports().start() + 3);
    browser.click(x, y);
    browser.until("document.getElementById('who-body').innerText.includes('debugger')");
    browser.key("Escape");
    browser.until("document.getElementById('who').hidden");

    // The table has the reason why something is not in force.
    browser.value(
        "{ const s = document.getElementById('by-state'); s.value = 'not'; s.dispatchEvent(new Event('change')); }",
    );
    let waiting = rows(&mut browser).join("\n");
    assert!(waiting.contains("metrics") && waiting.contains("9100/tcp is in use by"), "{waiting}");
    assert!(waiting.contains("second-website") && waiting.contains("conflict"), "{waiting}");
    browser.value(
        "{ const s = document.getElementById('by-state'); s.value = ''; s.dispatchEvent(new Event('change')); }",
    );

    // A list of ports is one reservation: both of its blocks are on the map, and one row is in the table.
    search(&mut browser, "443/tcp");
    let found = rows(&mut browser);
    assert!(
        found.len() == 2 && found.iter().any(|row| row.contains("80,443") && row.contains("website")),
        "{found:#?}"
    );
    for port in [80, 443] {
        let (x, y) = place(&mut browser, "tcp", port);
        browser.mouse("mouseMoved", x, y);
        browser.until("document.getElementById('tip').innerText.includes('website: 80,443/tcp')");
    }
    // It is for two services, which the page names everywhere.
    let both = "unit certbot.service, unit nginx.service";
    let tip = browser.text("#tip");
    assert!(tip.contains(&format!("website: 80,443/tcp for {both}")), "{tip}");
    search(&mut browser, "443/tcp");
    browser.key("Enter");
    browser.until(&format!("document.getElementById('who-body').innerText.includes('{both}')"));
    // The reason why another one is not in force has long words.
    let paragraphs = "[...document.querySelectorAll('#who p')]";
    assert_eq!(browser.value(&format!("{paragraphs}.some((each) => each.scrollWidth > each.clientWidth)")), false);
    browser.key("Escape");
    let found = rows(&mut browser);
    assert!(found.iter().any(|row| row.contains("website") && row.contains(both)), "{found:#?}");

    // Search by unit, user, name and port.
    for (text, name) in [
        ("sip.service", "rtp"),
        ("certbot.service", "website"),
        ("docker.service", "vite preview"),
        ("pytest", "pytest -n 16"),
        ("16400", "rtp"),
        ("root build", "build-farm"),
    ] {
        search(&mut browser, text);
        let found = rows(&mut browser);
        assert!(!found.is_empty() && found.iter().any(|row| row.contains(name)), "{text}: {found:#?}");
        assert!(found.len() < 4, "{text}: {found:#?}");
    }
    search(&mut browser, "");

    // Keys: the map describes the current place in words.
    browser.value("document.getElementById('map').focus()");
    for key in ["n", "ArrowRight", "t"] {
        browser.key(key);
    }
    browser.until("/^\\d+.udp/.test(document.getElementById('spoken').innerText)");
    browser.key("Enter");
    browser.until("!document.getElementById('who').hidden");
    for key in ["+", "+", "ArrowDown", "-", "0", "Escape"] {
        browser.key(key);
    }
    browser.has_not_complained();

    // Zoomed in, in the dark; and on a phone.
    browser.window(1280, 1000, Scheme::Dark);
    search(&mut browser, "61000-61400");
    browser.key("Enter");
    browser.until("document.getElementById('where').innerText !== ''");
    browser.value("document.getElementById('who-close').click()");
    search(&mut browser, "");
    browser.value("document.activeElement.blur(); window.scrollTo(0, 0)");
    browser.value("new Promise((done) => setTimeout(done, 500))");
    browser.picture(&picture(pictures.path(), "web-zoomed.png"));
    browser.window(390, 844, Scheme::Light);
    loaded(&mut browser, &server);
    let wide = browser.value("document.documentElement.scrollWidth");
    assert_eq!(wide, 390, "it scrolls sideways");
    browser.picture(&pictures.path().join("web-phone.png"));
    browser.has_not_complained();
    drop(browser);
    scene.end(&world);
}

#[test]
fn a_refusal_flashes_where_it_happens() {
    let Some(world) = World::enter("web::browser::refusal") else { return };
    let Some(mut browser) = Chromium::start("web::browser::refusal") else { return };
    let mut scene = Scene::new(&world);
    let server = Server::start(scene.folder.path());
    browser.window(1280, 1000, Scheme::Light);
    loaded(&mut browser, &server);
    browser.until("document.getElementById('following').innerText === 'live'");
    let port = scene.own.ports().start() + 2;
    let red = format!(
        "(() => {{ const map = document.getElementById('map'); const at = map.positionOf('tcp', {port}); const scale = map.width / \
         map.clientWidth; const [r, g, b] = map.getContext('2d').getImageData(at.x * scale, at.y * scale, 1, 1).data; return r > \
         180 && g < 140 && b < 140; }})()"
    );
    assert_eq!(browser.value(&red), false);
    // Remember whether it was seen, however slow this machine is.
    browser.value(&format!(
        "window.seen = false; (function look() {{ window.seen ||= {red}; requestAnimationFrame(look); }})(); 0"
    ));
    let mut outsider = Child::fork(|talk| {
        talk.say(TcpListener::bind(("127.0.0.1", port)).is_err().into());
    });
    assert_eq!(outsider.talk.hear(), 1);
    outsider.join();
    // The browser itself may be refused another port.
    browser.until(&format!(
        "[...document.querySelectorAll('#events li.refused')].some((line) => line.innerText.includes('refused {port}/tcp: reserved \
         for') && line.innerText.includes('debugger'))"
    ));
    browser.until("window.seen");

    // A new reservation is on the map without a reload.
    let rest = portkeep::Reservation::udp().ports(2).label("late arrival").acquire().unwrap();
    browser.until("document.getElementById('rows').innerText.includes('late arrival')");
    drop(rest);
    browser.until("!document.getElementById('rows').innerText.includes('late arrival')");

    // The feed goes on when the agent comes back.
    scene.restart_agent(|| {
        browser.until("document.getElementById('following').innerText.startsWith('not shown')");
    });
    browser.until("document.getElementById('following').innerText === 'live'");
    browser.has_not_complained();
    drop(browser);
    scene.end(&world);
}

/// A page of another origin, on another port or under a name that leads here, gets nothing to read.
#[test]
fn a_page_from_elsewhere_cannot_read_it() {
    let Some(mut browser) = Chromium::start("web::browser::elsewhere") else { return };
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path());
    let elsewhere = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://evil.example:{}/", elsewhere.local_addr().unwrap().port());
    thread::spawn(move || {
        for stream in elsewhere.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let page = "<!doctype html><title>evil</title>";
            let _ = write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{page}",
                page.len()
            );
        }
    });
    let reads = |browser: &mut Chromium, url: &str, options: &str| -> Value {
        let expression = format!("fetch({url:?}, {options}).then((answer) => answer.text()).catch(() => 'nothing')");
        browser.value(&expression)
    };
    browser.open(&address);
    assert_eq!(browser.value("document.title"), "evil");
    assert_eq!(reads(&mut browser, &format!("{}api/map", server.address), "{}"), "nothing");
    assert_eq!(reads(&mut browser, &format!("{}api/map", server.address), "{mode: 'no-cors'}"), "nothing");
    // The name of the page now leads to the server.
    let port = server.host().rsplit_once(':').unwrap().1.to_owned();
    browser.open(&format!("http://rebound.example:{port}/"));
    let text = browser.text("body");
    assert!(text.contains("this Host is not answered"), "{text}");
    assert!(reads(&mut browser, "/api/map", "{}").as_str().unwrap().contains("not answered"));
    // The browser itself may. Its complaint about the icon of the page before may be late.
    browser.complaints.clear();
    loaded(&mut browser, &server);
    browser.complaints.retain(|complaint| !complaint.contains("rebound.example"));
    browser.has_not_complained();
}

/// Frames are measured and reported. No test fails because of a slow one.
#[test]
fn a_large_machine_can_be_looked_at() {
    let Some(world) = World::enter("web::browser::large") else { return };
    let Some(mut browser) = Chromium::start("web::browser::large") else { return };
    let scene = Large::new();
    let server = Server::start(scene.folder.path());
    browser.window(1280, 1000, Scheme::Light);
    browser.before_pages(
        "window.work = []; window.tasks = []; const next = window.requestAnimationFrame.bind(window); \
         window.requestAnimationFrame = (frame) => next((time) => { const begin = performance.now(); frame(time); \
         window.work.push(performance.now() - begin); }); new PerformanceObserver((list) => \
         list.getEntries().forEach((entry) => window.tasks.push(Math.round(entry.duration)))).observe({entryTypes: ['longtask']});",
    );
    loaded(&mut browser, &server);
    browser.until("document.querySelectorAll('#rows tr').length === 100");
    let frames = "new Promise((done) => { const map = document.getElementById('map'); const box = map.getBoundingClientRect(); \
                  map.focus(); window.work.length = 0; let left = 60; (function frame() { map.dispatchEvent(new \
                  WheelEvent('wheel', {deltaY: left > 30 ? -40 : 40, clientX: box.left + 150, clientY: box.top + 60, \
                  cancelable: true})); if (left-- > 0) requestAnimationFrame(frame); else done(); })(); })";
    browser.value(frames);
    let numbers = |browser: &mut Chromium, expression: &str| {
        let value = browser.value(expression);
        Vec::from_iter(value.as_array().unwrap().iter().map(|time| time.as_f64().unwrap()))
    };
    let times = numbers(&mut browser, "window.work.filter((time) => time > 0.05)");
    let longest = times.iter().copied().fold(0.0, f64::max);
    let tasks = numbers(&mut browser, "window.tasks");
    note(&format!(
        "work in a frame while zooming with {RESERVATIONS} reservations: {:.1} ms in the middle, {longest:.1} ms the longest; long \
         tasks of the page, new data included: {tasks:?} ms",
        median(times)
    ));
    let (x, y) = place(&mut browser, "tcp", 2003);
    browser.mouse("mouseMoved", x, y);
    browser.until("document.getElementById('tip').innerText.includes('service-')");
    search(&mut browser, "service-96");
    browser.until("document.querySelectorAll('#rows tr').length === 100 && document.getElementById('count').innerText.includes('of 10000')");
    browser.has_not_complained();
    drop(browser);
    scene.end();
    drop(world);
}
