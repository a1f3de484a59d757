//! The hub, played by a small server on this machine.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use tempfile::{TempDir, tempdir};

use super::*;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What the server has, and what was asked of it.
#[derive(Default)]
struct State {
    files: BTreeMap<String, Vec<u8>>,
    /// Cut the next answers with a body after so many bytes.
    cut: Vec<usize>,
    /// Answer everything with this status.
    status: Option<u16>,
    /// Flip a byte of what is sent.
    corrupt: bool,
    asked: Vec<String>,
}

struct Hub {
    state: Arc<Mutex<State>>,
    address: SocketAddr,
    cache: TempDir,
}

/// Answers one request and closes the connection, which a server library would not do in the middle of a body.
fn answer(state: &mut State, mut stream: TcpStream) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let first = lines.next().unwrap().unwrap();
    let url = first.split(' ').nth(1).unwrap().to_string();
    let mut headers = BTreeMap::new();
    while let Some(Ok(line)) = lines.next()
        && let Some((name, value)) = line.split_once(": ")
    {
        headers.insert(name.to_lowercase(), value.to_string());
    }
    let value = |name: &str| headers.get(name).cloned().unwrap_or_default();
    state.asked.push(format!("{url} {} {}", value("range"), value("authorization")).trim().to_string());
    let mut send = |status: u16, more: &str, body: &[u8], sent: usize| {
        let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\nConnection: close\r\n{more}\r\n", body.len());
        let _ = stream.write_all(head.as_bytes());
        let _ = stream.write_all(&body[..sent.min(body.len())]);
    };
    if let Some(status) = state.status {
        return send(status, "", b"no", 2);
    }
    if url == "/api/models/org/tiny/revision/main" {
        let names: Vec<String> = state.files.keys().map(|name| format!("{{\"rfilename\":\"{name}\"}}")).collect();
        let body = format!("{{\"sha\":\"{COMMIT}\",\"siblings\":[{}]}}", names.join(","));
        return send(200, "", body.as_bytes(), usize::MAX);
    }
    let name = url.strip_prefix(&format!("/org/tiny/resolve/{COMMIT}/"));
    let Some(mut data) = name.and_then(|name| state.files.get(name)).cloned() else { return send(404, "", b"no", 2) };
    let tag = crate::sha256(&data);
    let range = value("range");
    let (start, end) = range.strip_prefix("bytes=").and_then(|r| r.split_once('-')).unwrap();
    let start: usize = start.parse().unwrap();
    let end = end.parse().map_or(data.len(), |end: usize| (end + 1).min(data.len()));
    if start >= data.len() {
        return send(416, "", b"beyond", 6);
    }
    if state.corrupt {
        let last = data.len() - 1;
        data[last] ^= 1;
    }
    let more = format!(
        "ETag: \"{tag}\"\r\nX-Repo-Commit: {COMMIT}\r\nContent-Range: bytes {start}-{}/{}\r\n",
        end - 1,
        data.len()
    );
    let is_probe = range == "bytes=0-0";
    let sent = if is_probe || state.cut.is_empty() { usize::MAX } else { state.cut.remove(0) };
    send(206, &more, &data[start..end], sent);
}

impl Hub {
    fn start(files: &[(&str, Vec<u8>)]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let files = files.iter().map(|(name, data)| (name.to_string(), data.clone())).collect();
        let state = Arc::new(Mutex::new(State { files, ..State::default() }));
        let shared = state.clone();
        // Ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                answer(&mut shared.lock().unwrap(), stream);
            }
        });
        Self { state, address, cache: tempdir().unwrap() }
    }

    fn settings(&self, more: &[(&str, &str)]) -> Settings {
        let address = format!("http://{}", self.address);
        let root = self.cache.path().to_str().unwrap().to_string();
        Settings::read(|name| match more.iter().find(|(known, _)| *known == name) {
            Some((_, value)) => Some(value.to_string()),
            None if name == "HF_ENDPOINT" => Some(address.clone()),
            None if name == "HF_HOME" => Some(root.clone()),
            None => None,
        })
        .unwrap()
    }

    fn fetch(&self, reference: &str) -> Result<Source> {
        fetch(&HubId::parse(reference).unwrap(), &self.settings(&[]), &mut crate::report::Silent)
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().unwrap().asked)
    }

    fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap());
    }
}

fn noise(length: usize) -> Vec<u8> {
    let mut random = crate::model::tests::fixture::Random(3);
    (0..length).map(|_| random.next() as u8).collect()
}

fn refused(result: Result<Source>, parts: &[&str]) {
    let text = result.unwrap_err().to_string();
    parts.iter().for_each(|part| assert!(text.contains(part), "`{part}` is not in: {text}"));
}

fn checkpoint() -> Vec<(&'static str, Vec<u8>)> {
    let index = br#"{"weight_map":{"a":"one.safetensors","b":"two.safetensors"}}"#.to_vec();
    vec![
        ("config.json", b"{}".to_vec()),
        ("tokenizer.json", b"{\"t\":1}".to_vec()),
        (INDEX, index),
        ("one.safetensors", noise(900_000)),
        ("two.safetensors", noise(100)),
        ("pytorch_model.bin", noise(10)),
        ("README.md", noise(10)),
    ]
}

#[test]
fn only_what_is_needed_is_fetched_and_the_cache_is_used_afterwards() {
    let hub = Hub::start(&checkpoint());
    struct Counts(Vec<String>, u64);
    impl Observer for Counts {
        fn on(&mut self, event: &Event<'_>) {
            match event {
                Event::Phase(phase) => self.0.push(phase.to_string()),
                Event::Progress { done, total, unit } => {
                    assert!(*unit == "bytes" && done <= total);
                    self.1 = self.1.max(*done);
                }
                _ => {}
            }
        }
    }
    let mut seen = Counts(Vec::new(), 0);
    let settings = hub.settings(&[("HF_TOKEN", "secret")]);
    let id = HubId::parse("org/tiny").unwrap();
    let Source::Directory(directory) = fetch(&id, &settings, &mut seen).unwrap() else { panic!("not a directory") };
    for (name, data) in checkpoint() {
        let wanted = !matches!(name, "pytorch_model.bin" | "README.md");
        assert_eq!(std::fs::read(directory.join(name)).ok(), wanted.then_some(data), "{name}");
    }
    assert!(directory.ends_with(format!("hub/models--org--tiny/snapshots/{COMMIT}")), "Python's layout");
    assert_eq!(seen.0.last().unwrap(), "downloading two.safetensors");
    assert_eq!(seen.1, 900_000);
    assert!(hub.asked().iter().all(|asked| asked.ends_with("Bearer secret")));

    assert_eq!(hub.fetch("org/tiny").unwrap(), Source::Directory(directory.clone()));
    assert!(hub.asked().is_empty(), "a whole snapshot is used without asking");
    let offline = hub.settings(&[("HF_HUB_OFFLINE", "1")]);
    assert_eq!(fetch(&id, &offline, &mut crate::report::Silent).unwrap(), Source::Directory(directory.clone()));

    // What is missing is fetched, and nothing else.
    std::fs::remove_file(directory.join("two.safetensors")).unwrap();
    hub.fetch("org/tiny").unwrap();
    assert!(hub.asked().iter().skip(1).all(|asked| asked.contains("two.safetensors")));
}

#[test]
fn an_interrupted_download_goes_on_where_it_stopped() {
    let hub = Hub::start(&[("model.gguf", noise(900_000))]);
    // All attempts of the first run break off.
    hub.set(|state| state.cut = vec![300_000; ATTEMPTS as usize]);
    hub.set(|state| state.cut[1..].fill(0));
    refused(hub.fetch("org/tiny"), &["cannot fetch `org/tiny`", "goes on where it stopped"]);
    let part = std::fs::read_dir(hub.cache.path().join("hub/models--org--tiny/blobs")).unwrap().flatten();
    let part: Vec<_> = part.filter(|entry| entry.path().extension().is_some_and(|e| e == "part")).collect();
    let kept = part[0].metadata().unwrap().len();
    assert!(kept > 0 && kept <= 300_000, "{kept}");
    hub.asked();

    let Source::Gguf(path) = hub.fetch("org/tiny").unwrap() else { panic!("not a GGUF file") };
    assert_eq!(std::fs::read(path).unwrap(), noise(900_000));
    assert!(hub.asked().last().unwrap().contains(&format!("bytes={kept}-")), "the rest alone is asked for");
}

#[test]
fn a_connection_that_breaks_once_is_not_noticed() {
    let hub = Hub::start(&[("model.gguf", noise(900_000))]);
    hub.set(|state| state.cut = vec![100_000, 200_000]);
    let Source::Gguf(path) = hub.fetch("org/tiny/model.gguf").unwrap() else { panic!("not a GGUF file") };
    assert_eq!(std::fs::read(path).unwrap(), noise(900_000));
}

#[test]
fn a_part_that_is_complete_or_too_long_does_no_harm() {
    for extra in [0usize, 10] {
        let data = noise(900_000);
        let hub = Hub::start(&[("model.gguf", data.clone())]);
        let tag = crate::sha256(&data);
        let blobs = hub.cache.path().join("hub/models--org--tiny/blobs");
        std::fs::create_dir_all(&blobs).unwrap();
        let part: Vec<u8> = data.iter().copied().chain(std::iter::repeat_n(0, extra)).collect();
        std::fs::write(blobs.join(format!("{tag}.part")), part).unwrap();
        let Source::Gguf(path) = hub.fetch("org/tiny").unwrap() else { panic!("not a GGUF file") };
        assert_eq!(std::fs::read(path).unwrap(), data);
    }
}

#[test]
fn a_damaged_download_is_removed() {
    let hub = Hub::start(&[("model.gguf", noise(1000))]);
    hub.set(|state| state.corrupt = true);
    refused(hub.fetch("org/tiny"), &["model.gguf arrived damaged", "run the same command again"]);
    hub.set(|state| state.corrupt = false);
    assert!(hub.fetch("org/tiny").is_ok());
}

#[test]
fn refusals_say_what_to_do() {
    let hub = Hub::start(&[("a.gguf", noise(10)), ("b.gguf", noise(10))]);
    refused(hub.fetch("org/tiny"), &["several GGUF files", "org/tiny/a.gguf, org/tiny/b.gguf"]);
    refused(hub.fetch("org/tiny/c.gguf"), &["no file `c.gguf`", "org/tiny/a.gguf"]);
    assert!(hub.fetch("org/tiny/b.gguf").is_ok());
    refused(hub.fetch("org/other"), &["no model `org/other` at revision `main`", "check the spelling"]);
    refused(hub.fetch("org/tiny@v2"), &["revision `v2`"]);
    hub.set(|state| state.status = Some(401));
    refused(hub.fetch("org/tiny"), &["refuses `org/tiny`", "HF_TOKEN"]);
    let id = HubId::parse("org/tiny").unwrap();
    let with_token = hub.settings(&[("HF_TOKEN", "t")]);
    refused(fetch(&id, &with_token, &mut crate::report::Silent), &["your token has no access"]);
    let offline = hub.settings(&[("HF_HUB_OFFLINE", "1")]);
    refused(fetch(&id, &offline, &mut crate::report::Silent), &["not in the cache", "HF_HUB_OFFLINE"]);
    // Nobody listens there.
    let nobody = hub.settings(&[("HF_ENDPOINT", "http://127.0.0.1:9")]);
    refused(
        fetch(&id, &nobody, &mut crate::report::Silent),
        &["cannot fetch `org/tiny` from http://127.0.0.1:9", "check the network"],
    );
    hub.set(|state| (state.status, state.files) = (None, [("x.bin".to_string(), vec![1])].into()));
    refused(hub.fetch("org/tiny"), &["neither safetensors nor GGUF"]);
    hub.set(|state| state.files = [("../evil.gguf".to_string(), vec![1])].into());
    refused(hub.fetch("org/tiny"), &["neither safetensors nor GGUF"]);
}

#[test]
fn ids_are_told_from_paths() {
    let id = HubId::parse("HuggingFaceTB/SmolLM2-135M@v1/x").unwrap();
    assert_eq!((id.repo.as_str(), id.revision.as_str(), id.file), ("HuggingFaceTB/SmolLM2-135M", "v1/x", None));
    assert_eq!(HubId::parse("a/b/q4/c.gguf").unwrap().file.as_deref(), Some("q4/c.gguf"));
    for path in ["model", "./a/b", "../a", "/a/b", "a/b.gguf", "a/b/c", "a//b", "a/b/../c.gguf", "a b/c", "a/b@", "~/a"]
    {
        assert_eq!(HubId::parse(path), None, "{path}");
    }
}

#[test]
fn the_environment_is_read_as_python_reads_it() {
    let home = tempdir().unwrap();
    let root = home.path().to_str().unwrap();
    std::fs::write(home.path().join("token"), " filed \n").unwrap();
    let read = |variables: &[(&str, &str)]| {
        let find = |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.to_string());
        Settings::read(find).unwrap()
    };
    let settings = read(&[("HF_HOME", root), ("HF_ENDPOINT", "http://x/")]);
    assert_eq!((settings.cache, settings.token.as_deref()), (home.path().join("hub"), Some("filed")));
    assert_eq!((settings.endpoint.as_deref(), settings.offline), (Some("http://x"), false));
    let settings = read(&[("HF_HOME", root), ("HF_TOKEN", "t"), ("HF_HUB_CACHE", "/c"), ("HF_HUB_OFFLINE", "True")]);
    assert_eq!((settings.cache.to_str(), settings.token.as_deref(), settings.offline), (Some("/c"), Some("t"), true));
    assert_eq!(read(&[("HOME", "/h")]).cache, Path::new("/h/.cache/huggingface/hub"));
    assert_eq!(read(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")]).cache, Path::new("/x/huggingface/hub"));
}
