use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::PathBuf;

use tempfile::TempDir;

use super::*;
use crate::plugin::custom_section::tests::{component, custom};

/// A signed plugin; tests/golden/plugins/make.py made these files.
const SIGNED: &[u8] = include_bytes!("../../../../../tests/golden/plugins/top-norm.wasm");
const SIGNATURE: &str = include_str!("../../../../../tests/golden/plugins/top-norm.wasm.minisig");
const KEY: &str = include_str!("../../../../../tests/golden/plugins/minisign.pub");

struct Project(TempDir);

impl Project {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("top-norm.wasm"), SIGNED).unwrap();
        Self(dir)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn files(&self) -> Files {
        Files::in_directory(&self.path().join("files"))
    }

    fn wanted(&self, source: &str) -> Wanted {
        Wanted { source: Source::parse(source).unwrap().seen_from(self.path()), key: None, signature: None }
    }

    fn install(&self, source: &str) -> Result<Pinned> {
        self.install_as(&self.wanted(source), &Consent::default())
    }

    fn install_as(&self, wanted: &Wanted, consent: &Consent) -> Result<Pinned> {
        install(&fetch(wanted, self.path())?, self.path(), &self.files(), consent)
    }

    fn names(&self) -> Vec<PathBuf> {
        let mut names: Vec<PathBuf> = fs::read_dir(self.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        names.sort();
        names
    }
}

fn plugin(version: &str, about: &str) -> Vec<u8> {
    let json = serde_json::json!({
        "name": "top-norm", "version": version, "author": "A", "license": "MIT", "api": "0.1", "about": about,
    });
    component(&[custom("liftplan:plugin", json.to_string().as_bytes())])
}

fn key() -> Key {
    Key::parse(KEY.lines().last().unwrap()).unwrap()
}

#[track_caller]
fn message<T: std::fmt::Debug>(result: Result<T>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn what_is_installed_is_loaded_by_its_name() {
    let project = Project::new();
    let pinned = project.install("top-norm.wasm").unwrap();
    assert_eq!(pinned.source, "top-norm.wasm", "below the lock's directory, seen from there");
    // The original is no longer needed, nor looked at.
    fs::write(project.path().join("top-norm.wasm"), "other").unwrap();
    let loaded = load(project.path(), &project.files(), "top-norm").unwrap();
    assert_eq!(loaded.bytes, SIGNED);
    assert_eq!((loaded.sha256, loaded.kind, loaded.allow_native), (pinned.sha256, Kind::Wasm, false));

    let other = message(load(project.path(), &project.files(), "top-nrom"));
    assert!(other.contains("the plugin top-nrom is not installed"), "{other}");
    assert!(other.ends_with("help: did you mean top-norm?"), "{other}");
    assert_eq!(remove(project.path(), &project.files(), "top-norm", true).unwrap().name, "top-norm");
    assert!(message(load(project.path(), &project.files(), "top-norm")).contains("is not installed"));
    assert_eq!(fs::read_dir(project.path().join("files")).unwrap().count(), 0);
}

#[test]
fn a_file_that_was_changed_is_not_loaded_and_can_be_restored() {
    let project = Project::new();
    let pinned = project.install("top-norm.wasm").unwrap();
    let file = project.files().path(&pinned.sha256);
    let mut bytes = SIGNED.to_vec();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&file, &bytes).unwrap();
    let changed = message(load(project.path(), &project.files(), "top-norm"));
    assert!(changed.starts_with("top-norm 1.0.0: ") && changed.contains(" was changed: its sha256 is "), "{changed}");
    fs::remove_file(&file).unwrap();
    let missing = message(load(project.path(), &project.files(), "top-norm"));
    assert!(missing.contains("its file is not on this machine"), "{missing}");

    let restored = restore(project.path(), &project.files(), None).unwrap();
    assert_eq!((restored.len(), &restored[0]), (1, &pinned));
    assert_eq!(restore(project.path(), &project.files(), None).unwrap(), []);
    load(project.path(), &project.files(), "top-norm").unwrap();

    fs::remove_file(&file).unwrap();
    fs::write(project.path().join("top-norm.wasm"), &bytes).unwrap();
    let other = message(restore(project.path(), &project.files(), None));
    assert!(other.contains("holds another file by now"), "{other}");
    assert!(!file.exists());
}

#[test]
fn a_lock_that_names_another_version_than_the_file_is_refused() {
    let project = Project::new();
    project.install("top-norm.wasm").unwrap();
    let lock = project.path().join(LOCK_FILE);
    let text = fs::read_to_string(&lock).unwrap().replace("\"1.0.0\"", "\"1.0.1\"");
    fs::write(&lock, text).unwrap();
    let error = message(load(project.path(), &project.files(), "top-norm"));
    assert!(
        error.contains("liftplan.lock pins it, but the file with this hash says that it is top-norm 1.0.0"),
        "{error}"
    );
}

#[test]
fn locks_that_make_no_sense_say_where() {
    let project = Project::new();
    project.install("top-norm.wasm").unwrap();
    let good = fs::read_to_string(project.path().join(LOCK_FILE)).unwrap();
    for (text, expected) in [
        ("".into(), "it has no `version = 1`"),
        (good.replace("version = 1\n", "version = 2\n"), "it has version 2, and this Liftplan reads version 1"),
        (
            good.replace("sha256 = \"", "sha256 = \"A"),
            "the plugin \"top-norm\": `sha256` must be 64 hexadecimal digits in lower case",
        ),
        (good.replace("name = \"top-norm\"", "name = \"../x\""), "the plugin \"../x\": this is no name for a plugin"),
        (
            good.replace("kind = \"wasm\"", "kind = \"wasm\"\nallow_native = true"),
            "the plugin \"top-norm\": `allow_native` has no effect on a WebAssembly component",
        ),
        (good.replace("kind = \"wasm\"", "kind = \"dotnet\""), "unknown variant `dotnet`"),
        (
            good.replace("source = \"", "source = \"ftp://"),
            "the plugin \"top-norm\": plugins cannot be fetched from ftp://top-norm.wasm",
        ),
        (
            format!("{good}{}", &good[good.find("[[plugin]]").unwrap()..]),
            "the plugin top-norm stands twice or out of order",
        ),
    ] {
        fs::write(project.path().join(LOCK_FILE), text).unwrap();
        let error = message(Lock::read(project.path()));
        assert!(error.contains(expected) && error.contains(LOCK_FILE), "{expected}:\n{error}");
    }
}

#[test]
fn a_version_that_changed_needs_consent_and_a_new_one_does_not() {
    let project = Project::new();
    project.install("top-norm.wasm").unwrap();
    fs::write(project.path().join("b.wasm"), plugin("1.0.0", "other")).unwrap();
    let error = message(project.install("b.wasm"));
    assert!(error.starts_with("top-norm 1.0.0 is installed already, and this file is another one"), "{error}");
    project.install_as(&project.wanted("b.wasm"), &Consent { replace: true, ..Consent::default() }).unwrap();
    fs::write(project.path().join("c.wasm"), plugin("1.1.0", "newer")).unwrap();
    project.install("c.wasm").unwrap();
    assert_eq!(Lock::read(project.path()).unwrap().plugins.len(), 1);
    let loaded = load(project.path(), &project.files(), "top-norm").unwrap();
    assert_eq!(loaded.metadata.version, "1.1.0");
}

#[test]
fn what_cannot_be_installed_leaves_nothing() {
    let project = Project::new();
    fs::write(project.path().join("half.wasm"), &SIGNED[..SIGNED.len() - 3]).unwrap();
    fs::write(project.path().join("text.wasm"), "hello").unwrap();
    fs::File::create(project.path().join("big.wasm")).unwrap().set_len(MAX_FILE_BYTES + 1).unwrap();
    let before = project.names();
    for (source, expected) in [
        ("none.wasm", "cannot read the plugin"),
        ("half.wasm", "it ends in the middle"),
        ("text.wasm", "it is neither a WebAssembly component nor a dynamic library"),
        ("big.wasm", "is larger than 64 MiB"),
        ("http://127.0.0.1:1/x.wasm", "cannot be fetched"),
        ("oci://127.0.0.1:1/team/x:1", "cannot be fetched"),
        ("oci://nowhere", "names no registry"),
    ] {
        let error = message(project.install(source));
        assert!(error.contains(expected), "{source}: {error}");
        assert_eq!(project.names(), before, "{source}");
    }
    for (source, expected) in [
        ("http://example.com/x.wasm", "is not encrypted"),
        ("http://127.0.0.1.example.com/x.wasm", "is not encrypted"),
        ("https://user:secret@example.com/x.wasm", "has a user's name in it"),
        ("ftp://example.com/x.wasm", "plugins cannot be fetched from"),
        ("", "is empty"),
    ] {
        let error = message(Source::parse(source));
        assert!(error.contains(expected), "{source}: {error}");
    }
}

#[test]
fn a_signature_is_checked_against_the_key_and_the_key_is_remembered() {
    let project = Project::new();
    let signed = Wanted { key: Some(key()), ..project.wanted("top-norm.wasm") };
    let error = message(fetch(&signed, project.path()));
    assert!(error.contains("is not signed: there is no "), "{error}");
    fs::write(project.path().join("top-norm.wasm.minisig"), SIGNATURE).unwrap();
    let offer = fetch(&signed, project.path()).unwrap();
    assert_eq!(offer.signed_comment.as_deref(), Some("top-norm 1.0.0"));
    let pinned = install(&offer, project.path(), &project.files(), &Consent::default()).unwrap();
    assert_eq!(pinned.public_key, Some(key().text));

    // Without a key, the one that the lock has is used.
    fs::write(project.path().join("new.wasm"), plugin("2.0.0", "unsigned")).unwrap();
    let error = message(project.install("new.wasm"));
    assert!(error.contains("is not signed: there is no "), "{error}");
    fs::write(project.path().join("new.wasm.minisig"), SIGNATURE).unwrap();
    let error = message(project.install("new.wasm"));
    assert!(error.contains("the signature does not fit the file: one of them was changed"), "{error}");
    fs::write(project.path().join("new.wasm.minisig"), "hello").unwrap();
    assert!(message(project.install("new.wasm")).contains("is no minisign signature"));

    let other = Key::parse("RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3").unwrap();
    let error = message(fetch(&Wanted { key: Some(other), ..signed }, project.path()));
    assert!(error.contains("the signature was made with another key than RWQf6"), "{error}");
    assert!(message(Key::parse("RWhello")).contains("is no minisign public key"));
}

/// Answers each request with the first of `answers` whose path it asks for, and 404 else.
fn serve(answers: Vec<(&'static str, String, Vec<u8>)>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = Vec::new();
            let mut buffer = [0; 1024];
            while !request.windows(4).any(|end| end == b"\r\n\r\n") {
                let read = stream.read(&mut buffer).unwrap();
                request.extend(&buffer[..read]);
            }
            let text = String::from_utf8(request).unwrap();
            let path = text.split(' ').nth(1).unwrap();
            let none = ("", "404 Not Found\r\nContent-Length: 0".to_string(), Vec::new());
            let (_, head, body) = answers.iter().find(|(wanted, ..)| *wanted == path).unwrap_or(&none);
            let _ = stream.write_all(format!("HTTP/1.1 {head}\r\nConnection: close\r\n\r\n").as_bytes());
            let _ = stream.write_all(body);
        }
    });
    format!("http://{address}")
}

fn whole(bytes: &[u8]) -> (String, Vec<u8>) {
    (format!("200 OK\r\nContent-Length: {}", bytes.len()), bytes.to_vec())
}

#[test]
fn addresses_are_fetched_whole_up_to_a_size_and_without_detours() {
    let project = Project::new();
    let (head, body) = whole(SIGNED);
    let (signature_head, signature) = whole(SIGNATURE.as_bytes());
    let server = serve(vec![
        ("/top-norm.wasm", head, body),
        ("/top-norm.wasm.minisig", signature_head, signature),
        ("/half.wasm", format!("200 OK\r\nContent-Length: {}", SIGNED.len()), SIGNED[..100].to_vec()),
        ("/big.wasm", format!("200 OK\r\nContent-Length: {}", 1u64 << 40), vec![0; 1000]),
        ("/endless.wasm", "200 OK".into(), vec![0; (MAX_FILE_BYTES + 2) as usize]),
        ("/away.wasm", "302 Found\r\nLocation: http://example.com/x.wasm\r\nContent-Length: 0".into(), Vec::new()),
        ("/broken.wasm", "500 Oh\r\nContent-Length: 0".into(), Vec::new()),
    ]);
    for (path, expected) in [
        ("none.wasm", "there is nothing at"),
        ("half.wasm", "cannot be fetched"),
        ("big.wasm", "is larger than 64 MiB"),
        ("endless.wasm", "is larger than 64 MiB"),
        ("away.wasm", "the server sends on to another address"),
        ("broken.wasm", "the server answered with status 500"),
    ] {
        let error = message(project.install(&format!("{server}/{path}")));
        assert!(error.contains(expected), "{path}: {error}");
        assert!(!project.path().join(LOCK_FILE).exists() && !project.path().join("files").exists(), "{path}");
    }
    let url = format!("{server}/top-norm.wasm");
    let pinned = project.install_as(&Wanted { key: Some(key()), ..project.wanted(&url) }, &Consent::default()).unwrap();
    assert_eq!((pinned.source, pinned.public_key), (url, Some(key().text)));
    project.files().remove(&pinned.sha256).unwrap();
    assert_eq!(restore(project.path(), &project.files(), None).unwrap().len(), 1);
}

#[test]
fn what_a_plugin_asks_for_is_shown() {
    let project = Project::new();
    let text = fetch(&project.wanted("top-norm.wasm"), project.path()).unwrap().text();
    let expected = format!(
        "top-norm 1.0.0\n  about      Trains the weights with the largest norm.\n  author     A. Weaver\n  \
         licence    MIT\n  file       WebAssembly component, fenced in, {} B\n  sha256     {}\n  \
         from       top-norm.wasm\n  signed by  not checked\n  asks for   statistics of the model's weights\n",
        SIGNED.len(),
        crate::sha256(SIGNED),
    );
    assert_eq!(text, expected);
}
