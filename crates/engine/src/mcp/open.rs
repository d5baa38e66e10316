//! How a session with a server begins.

use std::{process::Stdio, time::Duration};

use rmcp::{
    model::ProtocolVersion,
    service::{
        ClientInitializeError, ClientLifecycleMode, ClientServiceExt, RoleClient, RunningService,
    },
    transport::{
        StreamableHttpClientTransport, async_rw::AsyncRwTransport,
        streamable_http_client::StreamableHttpClientTransportConfig,
    },
};
use tokio::process::{Child, Command};

use super::{McpSource, connection::Listener};

/// How long a server may take to be ready.
pub(super) const CONNECT: Duration = Duration::from_secs(10);

/// How long a server may take to say that it does without a handshake. Those that leave the question
/// without any answer are asked again with one.
const DISCOVER: Duration = Duration::from_secs(4);

/// Of a server that wants to know who asks.
const KEYLESS: &str = "it wants a key: give it as bearer_token or in headers (OAuth cannot be used; get a token elsewhere)";
const REFUSED: &str =
    "it refuses the key in bearer_token or headers (OAuth cannot be used; get a token elsewhere)";

/// How long a program may take to end that has closed its output.
const EXIT: Duration = Duration::from_secs(1);

/// A session, and the program behind it, which ends with it.
pub(super) struct Session {
    pub service: RunningService<RoleClient, Listener>,
    pub _child: Option<Child>,
}

/// Begins sessions. Servers of today's protocol do without a handshake; those before it need one.
#[derive(Debug, Default)]
pub(super) struct Opening {
    /// Whether this server is known to need one.
    shakes_hands: bool,
}

/// Why there is no session.
enum Failure {
    /// There is nothing to speak to.
    Source(String),
    /// It does not speak as expected.
    Protocol(String),
}

impl Opening {
    pub async fn open(
        &mut self,
        source: &McpSource,
        listener: impl Fn() -> Listener,
    ) -> Result<Session, String> {
        if !self.shakes_hands {
            let mode = ClientLifecycleMode::Auto {
                preferred_versions: vec![ProtocolVersion::LATEST],
                legacy_version: Some(ProtocolVersion::LATEST_WITH_INITIALIZE),
            };
            let opened = tokio::time::timeout(DISCOVER, open(source, listener(), mode)).await;
            match opened {
                Ok(Ok(session)) => return Ok(session),
                Ok(Err(Failure::Source(reason))) => return Err(reason),
                // Servers that know nothing of this question may end, or answer it in any way.
                Ok(Err(Failure::Protocol(_))) | Err(_) => {}
            }
        }
        let opened = open(source, listener(), ClientLifecycleMode::Initialize);
        match tokio::time::timeout(CONNECT, opened).await {
            Ok(Ok(session)) => {
                self.shakes_hands = true;
                Ok(session)
            }
            Ok(Err(Failure::Source(reason) | Failure::Protocol(reason))) => Err(reason),
            Err(_) => Err(format!("it was not ready within {} s", CONNECT.as_secs())),
        }
    }
}

async fn open(
    source: &McpSource,
    listener: Listener,
    mode: ClientLifecycleMode,
) -> Result<Session, Failure> {
    match source {
        McpSource::Process {
            command,
            args,
            env,
            work_dir,
        } => {
            let mut program = Command::new(command);
            program
                .args(args)
                .envs(env)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .kill_on_drop(true);
            if let Some(folder) = work_dir {
                program.current_dir(folder);
            }
            let started = program.spawn();
            let mut child = started
                .map_err(|e| Failure::Source(format!("{command} cannot be started: {e}")))?;
            let (Some(output), Some(input)) = (child.stdout.take(), child.stdin.take()) else {
                let reason = format!("{command} was started without pipes");
                return Err(Failure::Source(reason));
            };
            let transport = AsyncRwTransport::new_client(output, input);
            match listener.serve_with_lifecycle(transport, mode).await {
                Ok(service) => Ok(Session {
                    service,
                    _child: Some(child),
                }),
                // Its output ends a moment before it does.
                Err(error @ ClientInitializeError::ConnectionClosed(_)) => {
                    let status = tokio::time::timeout(EXIT, child.wait()).await;
                    Err(Failure::Protocol(match status {
                        Ok(Ok(status)) => format!("{command} ended at once: {status}"),
                        _ => error.to_string(),
                    }))
                }
                Err(error) => Err(Failure::Protocol(error.to_string())),
            }
        }
        McpSource::Http {
            url,
            headers,
            bearer_token,
            ..
        } => {
            let mut config = StreamableHttpClientTransportConfig::with_uri(url.as_str());
            for (name, value) in headers {
                let wrong = |what: &str| {
                    Failure::Source(format!("the header {name:?} is no header's {what}"))
                };
                let key = http::HeaderName::try_from(name).map_err(|_| wrong("name"))?;
                let value = http::HeaderValue::try_from(value).map_err(|_| wrong("value"))?;
                config.custom_headers.insert(key, value);
            }
            config.auth_header = bearer_token.clone();
            let transport = StreamableHttpClientTransport::from_config(config);
            let served = listener.serve_with_lifecycle(transport, mode).await;
            let given = bearer_token.is_some()
                || (headers.keys()).any(|name| name.eq_ignore_ascii_case("authorization"));
            let service = served.map_err(|error| match error.is_authorization_required() {
                true if given => Failure::Source(REFUSED.into()),
                true => Failure::Source(KEYLESS.into()),
                false => Failure::Protocol(error.to_string()),
            })?;
            Ok(Session {
                service,
                _child: None,
            })
        }
    }
}
