//! Fetches a plugin from an OCI registry.
//!
//! A plugin is one layer of a manifest: of type `application/wasm`, as the CNCF's layout for WebAssembly has it, or
//! [`NATIVE_TYPE`] for a native library, of which an image index can hold one for each platform. A signature is a layer of
//! type [`SIGNATURE_TYPE`]. Registries are spoken to without a user's name, over HTTPS unless they are this machine.

use std::io;
use std::pin::Pin;
use std::str::FromStr;
use std::task::{Context, Poll};
use std::time::Duration;

use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::errors::{OciDistributionError, OciErrorCode};
use oci_client::manifest::OciDescriptor;
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference};
use tokio::io::AsyncWrite;

use super::MAX_FILE_BYTES;
use super::offer::Found;
use super::signature;
use super::source::{Source, is_this_machine, too_large};
use crate::plugin::escaped;
use crate::{Error, Result};

/// The media type of a WebAssembly component.
pub(super) const WASM_TYPE: &str = "application/wasm";
/// The media type of a native library.
pub(super) const NATIVE_TYPE: &str = "application/vnd.liftplan.plugin.native.v1";
/// The media type of a minisign signature.
pub(super) const SIGNATURE_TYPE: &str = "application/vnd.liftplan.plugin.minisig.v1";
/// How long all of it may take.
const DEADLINE: Duration = Duration::from_secs(600);

/// Fetches the plugin at `place`, `registry/repository:tag` or `…@sha256:…`.
///
/// # Errors
/// The registry can't be reached or refuses, or there is no plugin.
pub(super) fn pull(place: &str) -> Result<Found> {
    let shown = format!("oci://{}", escaped(place, 200));
    let reference = Reference::from_str(place).map_err(|error| {
        Error::config(format!("{shown} is no place in a registry: {error}"))
            .help("write it as oci://registry.example/team/plugin:1.0.0")
    })?;
    // The library would otherwise take a missing registry for Docker's.
    let registry = place.split('/').next().unwrap_or_default();
    if !place.contains('/') || !(registry.contains(['.', ':']) || registry == "localhost") {
        return Err(Error::config(format!("{shown} names no registry"))
            .help("write it as oci://registry.example/team/plugin:1.0.0"));
    }
    // Another part of the program may have installed one already, which serves as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::internal(format!("the network cannot be used: {error}")))?;
    let pulled = runtime.block_on(async {
        tokio::time::timeout(DEADLINE, pull_all(&reference, registry, &shown)).await.unwrap_or_else(|_| {
            Err(Error::plan(format!(
                "{shown} cannot be fetched: it took more than {} minutes",
                DEADLINE.as_secs() / 60
            )))
        })
    });
    // Without waiting for what a name server has not answered.
    runtime.shutdown_background();
    pulled
}

async fn pull_all(reference: &Reference, registry: &str, shown: &str) -> Result<Found> {
    let protocol = match is_this_machine(registry) {
        true => ClientProtocol::HttpsExcept(vec![registry.to_string()]),
        false => ClientProtocol::Https,
    };
    let client = Client::try_from(ClientConfig {
        protocol,
        connect_timeout: Some(Duration::from_secs(30)),
        read_timeout: Some(Duration::from_secs(60)),
        user_agent: concat!("liftplan/", env!("CARGO_PKG_VERSION")),
        ..ClientConfig::default()
    })
    .map_err(|error| explain(&error, shown))?;
    let (manifest, digest) = client
        .pull_image_manifest(reference, &RegistryAuth::Anonymous)
        .await
        .map_err(|error| explain(&error, shown))?;
    let of_type = |types: &[&str]| -> Vec<&OciDescriptor> {
        manifest.layers.iter().filter(|layer| types.contains(&layer.media_type.as_str())).collect()
    };
    let layer = match of_type(&[WASM_TYPE, NATIVE_TYPE]).as_slice() {
        [one] => *one,
        [] => {
            return Err(Error::plan(format!(
                "{shown} is no plugin: no layer has the type {WASM_TYPE} or {NATIVE_TYPE}"
            ))
            .help("publish it with `oras push REGISTRY/NAME:VERSION NAME.wasm:application/wasm`"));
        }
        several => {
            return Err(Error::plan(format!("{shown} has {} plugins, and must have one", several.len())));
        }
    };
    let bytes = pull_layer(&client, reference, layer, MAX_FILE_BYTES, shown).await?;
    let signature = match of_type(&[SIGNATURE_TYPE]).as_slice() {
        [one] => Some(pull_layer(&client, reference, one, signature::MAX_BYTES as u64, shown).await?),
        _ => None,
    };
    // What the lock keeps: this manifest, whatever the tag will point to.
    let exact = reference.clone_with_digest(digest);
    Ok(Found { bytes, source: Source::Oci(exact.whole()), signature })
}

/// One layer, whose hash the client compares with the manifest's.
async fn pull_layer(
    client: &Client,
    reference: &Reference,
    layer: &OciDescriptor,
    limit: u64,
    shown: &str,
) -> Result<Vec<u8>> {
    let mut sink = Sink { bytes: Vec::new(), limit, over: layer.size < 0 || layer.size as u64 > limit };
    let pulled = if sink.over { Ok(()) } else { client.pull_blob(reference, layer, &mut sink).await };
    if sink.over {
        return Err(too_large(shown));
    }
    pulled.map(|()| sink.bytes).map_err(|error| explain(&error, shown))
}

/// Takes bytes up to a limit.
struct Sink {
    bytes: Vec<u8>,
    limit: u64,
    over: bool,
}

impl AsyncWrite for Sink {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if (self.bytes.len() + bytes.len()) as u64 > self.limit {
            self.over = true;
            return Poll::Ready(Err(io::Error::other("too large")));
        }
        self.bytes.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fn explain(error: &OciDistributionError, shown: &str) -> Error {
    let network = "check the address and the network, then run the same command again";
    let unknown = || ("the registry has no such plugin or version".to_string(), "check the name and the tag");
    let (what, help) = match error {
        OciDistributionError::ImageManifestNotFoundError(_) => unknown(),
        OciDistributionError::RegistryError { envelope, .. }
            if envelope.errors.iter().all(|error| {
                matches!(error.code, OciErrorCode::ManifestUnknown | OciErrorCode::NameUnknown | OciErrorCode::NotFound)
            }) =>
        {
            unknown()
        }
        OciDistributionError::RegistryError { envelope, .. } => {
            (escaped(&envelope.to_string(), 300), "check the name and the tag")
        }
        OciDistributionError::AuthenticationFailure(_) | OciDistributionError::UnauthorizedError { .. } => (
            "the registry wants a user's name, and Liftplan gives none".to_string(),
            "fetch the file with a tool that can log in, such as oras, and install the file",
        ),
        OciDistributionError::DigestError(_) => {
            ("what arrived has another hash than the registry promised".to_string(), network)
        }
        OciDistributionError::RequestError(error) => {
            // The reason is at the end of a chain of general words.
            let mut reason: &dyn std::error::Error = error;
            while let Some(source) = reason.source() {
                reason = source;
            }
            (escaped(&reason.to_string(), 300), network)
        }
        other => (escaped(&other.to_string(), 300), network),
    };
    Error::plan(format!("{shown} cannot be fetched: {what}")).help(help)
}
