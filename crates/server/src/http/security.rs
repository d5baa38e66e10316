//! Who may ask: the key, and from where a browser may.

use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use subtle::ConstantTimeEq;

use super::{Shared, error::ApiError};

/// Who may ask.
#[derive(Clone, Default)]
pub struct Security {
    /// What a request must know.
    pub key: Option<String>,
    /// Whether only this machine can reach the server: then only its own names may be asked for.
    /// Otherwise a page of anyone's, whose name resolves to 127.0.0.1, could read what is here.
    pub local: bool,
    /// Other places whose pages may ask, as `https://app.example`.
    pub origins: Vec<String>,
}

/// Lets requests through that know the key.
pub async fn key(State(app): State<Shared>, request: Request, next: Next) -> Response {
    match app.security.knows(request.headers()) {
        true => next.run(request).await,
        false => {
            let message = "the API key is missing or wrong; send it as `Authorization: Bearer KEY`";
            let status = StatusCode::UNAUTHORIZED;
            ApiError::new(status, "authentication_error", message)
                .with_code("invalid_api_key")
                .into_response()
        }
    }
}

/// Lets requests through that come from a place that may ask.
pub async fn place(State(app): State<Shared>, request: Request, next: Next) -> Response {
    let allowed = match app.security.place(request.headers(), request.uri()) {
        Ok(origin) => origin,
        Err(error) => return error.into_response(),
    };
    let asks_first = request.method() == Method::OPTIONS
        && (request.headers()).contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    let mut response = match (&allowed, asks_first) {
        (Some(_), true) => StatusCode::NO_CONTENT.into_response(),
        _ => next.run(request).await,
    };
    if let Some(origin) = allowed {
        let headers = response.headers_mut();
        let fixed = HeaderValue::from_static;
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(header::VARY, fixed("origin"));
        headers.insert(
            header::ACCESS_CONTROL_ALLOW_METHODS,
            fixed("GET, POST, DELETE, OPTIONS"),
        );
        headers.insert(
            header::ACCESS_CONTROL_ALLOW_HEADERS,
            fixed(
                "authorization, content-type, x-api-key, x-request-id, last-event-id, mcp-session-id, \
                 mcp-protocol-version, mcp-method, mcp-name",
            ),
        );
        headers.insert(
            header::ACCESS_CONTROL_EXPOSE_HEADERS,
            fixed("retry-after, x-request-id, mcp-session-id"),
        );
    }
    response
}

impl Security {
    fn knows(&self, headers: &HeaderMap) -> bool {
        let Some(key) = &self.key else {
            return true;
        };
        let bearer = headers.get(header::AUTHORIZATION).and_then(|value| {
            let (scheme, rest) = value.as_bytes().split_at_checked(7)?;
            scheme.eq_ignore_ascii_case(b"bearer ").then_some(rest)
        });
        let other = headers.get("x-api-key").map(HeaderValue::as_bytes);
        let same = |given: &[u8]| bool::from(given.ct_eq(key.as_bytes()));
        bearer.is_some_and(same) || other.is_some_and(same)
    }

    /// The origin whose pages may read the answer, where that is another one than the server's own.
    fn place(&self, headers: &HeaderMap, uri: &Uri) -> Result<Option<HeaderValue>, ApiError> {
        let refuse = |message: String, code| {
            let error = ApiError::new(StatusCode::FORBIDDEN, "permission_error", message);
            Err(error.with_code(code))
        };
        let text = |name| {
            headers
                .get(name)
                .map(|v| String::from_utf8_lossy(v.as_bytes()))
        };
        let host = text(header::HOST).unwrap_or_default();
        let named = uri.authority().map(|authority| authority.as_str());
        if self.local && !(is_local(&host) && named.is_none_or(is_local)) {
            let message = format!(
                "the host {host:?} is not this server's; ask for localhost or 127.0.0.1, or start it \
                 with --host and an address of the network"
            );
            return refuse(message, "wrong_host");
        }
        let Some(origin) = headers.get(header::ORIGIN) else {
            return Ok(None);
        };
        let name = String::from_utf8_lossy(origin.as_bytes());
        if self.origins.iter().any(|o| o.eq_ignore_ascii_case(&name)) {
            return Ok(Some(origin.clone()));
        }
        let own = name.split_once("://").is_some_and(|(scheme, place)| {
            matches!(scheme, "http" | "https") && place.eq_ignore_ascii_case(&host)
        });
        let message = match &*name {
            "null" => {
                "pages without an origin, as files, may not ask; serve them over HTTP".to_owned()
            }
            _ => format!("pages of {name} may not ask; start the server with --cors-origin {name}"),
        };
        match own {
            true => Ok(None),
            false => refuse(message, "wrong_origin"),
        }
    }
}

/// Whether a host, with or without a port, is this machine's own name.
fn is_local(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    matches!(
        name.to_ascii_lowercase().as_str(),
        "localhost" | "127.0.0.1" | "[::1]"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &str)| {
            (
                header::HeaderName::from_static(name),
                value.parse().unwrap(),
            )
        };
        pairs.iter().map(pair).collect()
    }

    #[test]
    fn keys() {
        let security = Security {
            key: Some("secret".into()),
            ..Security::default()
        };
        let knows = |pairs: &[_]| security.knows(&headers(pairs));
        assert!(knows(&[("authorization", "Bearer secret")]));
        assert!(knows(&[("authorization", "bearer secret")]));
        assert!(knows(&[("x-api-key", "secret")]));
        assert!(!knows(&[]));
        assert!(!knows(&[("authorization", "Bearer secre")]));
        assert!(!knows(&[("authorization", "Bearer ")]));
        assert!(!knows(&[("authorization", "Basic secret")]));
        assert!(Security::default().knows(&headers(&[])));
    }

    #[test]
    fn hosts_and_origins() {
        let security = Security {
            local: true,
            origins: vec!["https://app.example".into()],
            ..Security::default()
        };
        let uri = Uri::from_static("/");
        let place = |pairs: &[_]| security.place(&headers(pairs), &uri);
        for host in [
            "localhost",
            "LOCALHOST:80",
            "127.0.0.1:1",
            "[::1]:8080",
            "[::1]",
        ] {
            assert_eq!(place(&[("host", host)]).unwrap(), None, "{host}");
        }
        for host in [
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil:80",
            "",
            "::1",
        ] {
            assert!(place(&[("host", host)]).is_err(), "{host}");
        }
        assert!(place(&[]).is_err());
        let from = |origin| place(&[("host", "localhost:80"), ("origin", origin)]);
        assert_eq!(from("http://localhost:80").unwrap(), None);
        assert!(from("https://app.example").unwrap().is_some());
        for origin in [
            "null",
            "http://localhost:81",
            "http://evil.example",
            "https://app.example.evil",
        ] {
            assert!(from(origin).is_err(), "{origin}");
        }
        let elsewhere = Uri::from_static("http://evil.example/");
        assert!(
            security
                .place(&headers(&[("host", "localhost")]), &elsewhere)
                .is_err()
        );
    }
}
