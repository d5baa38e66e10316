//! Whether the hub answers.

use std::{sync::mpsc, thread};

use super::{
    HASTE,
    cache::Cache,
    client::{Hub, runtime},
    spec::Spec,
};
use crate::hub::{Options, Result};

/// How things stand with the hub.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Reach {
    /// Its URL.
    pub endpoint: String,
    /// A token for gated models was found.
    pub has_token: bool,
    /// It must not be asked.
    pub offline: bool,
    /// Why it does not answer; none where it does, or where it was not asked.
    pub trouble: Option<String>,
}

/// Asks the hub for any answer, within five seconds.
///
/// # Errors
/// [`Error::Unreachable`](crate::hub::Error::Unreachable) where its URL is none.
pub fn reach(options: &Options) -> Result<Reach> {
    let spec = Spec {
        id: "org/name",
        revision: None,
        quant: None,
    };
    let cache = Cache::new(options.hub_cache(), spec.id);
    let hub = Hub::new(&spec, options, cache, HASTE)?;
    let (http, endpoint, has_token) = hub.parts();
    let offline = options.is_offline();
    let mut reach = Reach {
        endpoint: endpoint.to_owned(),
        has_token,
        offline,
        trouble: None,
    };
    if offline {
        return Ok(reach);
    }
    let (sender, answer) = mpsc::channel();
    let url = reach.endpoint.clone();
    // The system may look for an address for minutes: that goes on alone.
    thread::spawn(move || {
        let asked = runtime().map_err(|e| e.to_string()).and_then(|runtime| {
            let asked = runtime.block_on(async { http.head(url).timeout(HASTE).send().await });
            runtime.shutdown_background();
            asked.map_err(|e| super::client::root_cause(&e))
        });
        let _ = sender.send(asked.err());
    });
    let silence = format!("no answer in {} s", HASTE.as_secs());
    reach.trouble = answer.recv_timeout(HASTE).unwrap_or(Some(silence));
    Ok(reach)
}
