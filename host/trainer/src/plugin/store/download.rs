//! Fetches a file from an address, up to a size.

use std::time::Duration;

use ureq::Agent;

use super::MAX_FILE_BYTES;
use super::source::too_large;
use crate::plugin::escaped;
use crate::{Error, Result};

/// The file at `url`; `None` if the server says that there is none.
///
/// # Errors
/// The server can't be reached, refuses, or sends more than a plugin may have.
pub(super) fn get(url: &str) -> Result<Option<Vec<u8>>> {
    let shown = escaped(url, 200);
    let encrypted = url.starts_with("https://");
    let agent: Agent = Agent::config_builder()
        .https_only(encrypted)
        // A server on this machine must not send on to another one without encryption.
        .max_redirects(if encrypted { 5 } else { 0 })
        .timeout_connect(Some(Duration::from_secs(30)))
        .timeout_recv_response(Some(Duration::from_secs(60)))
        .timeout_global(Some(Duration::from_secs(600)))
        .user_agent(concat!("liftplan/", env!("CARGO_PKG_VERSION")))
        .build()
        .into();
    let help = "check the address and the network, then run the same command again";
    let failed = |error: ureq::Error| match error {
        ureq::Error::BodyExceedsLimit(_) => too_large(&shown),
        ureq::Error::StatusCode(code) => {
            Error::plan(format!("{shown} cannot be fetched: the server answered with status {code}")).help(help)
        }
        error => Error::plan(format!("{shown} cannot be fetched: {}", escaped(&error.to_string(), 300))).help(help),
    };
    let mut response = match agent.get(url).call() {
        Ok(response) => response,
        Err(ureq::Error::StatusCode(404 | 410)) => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    if response.status().is_redirection() {
        return Err(Error::plan(format!("{shown} cannot be fetched: the server sends on to another address"))
            .help("name that address"));
    }
    if response.body().content_length().is_some_and(|length| length > MAX_FILE_BYTES) {
        return Err(too_large(&shown));
    }
    let bytes = response.body_mut().with_config().limit(MAX_FILE_BYTES + 1).read_to_vec().map_err(failed)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(too_large(&shown));
    }
    Ok(Some(bytes))
}
