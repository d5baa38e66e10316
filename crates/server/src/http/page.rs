//! The page, which is part of the program.

use axum::{
    Router,
    http::{HeaderName, header},
    response::IntoResponse,
    routing::get,
};

use super::Shared;

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
     img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const JS: &str = "text/javascript; charset=utf-8";

macro_rules! file {
    ($path:literal, $kind:expr, $name:literal) => {
        ($path, $kind, include_str!(concat!("../../web/", $name)))
    };
}

/// Where each file is, what it is, and what is in it.
const FILES: &[(&str, &str, &str)] = &[
    file!("/", HTML, "index.html"),
    file!("/api.js", JS, "api.js"),
    file!("/app.js", JS, "app.js"),
    file!("/chat.js", JS, "chat.js"),
    file!("/content.css", CSS, "content.css"),
    file!("/dom.js", JS, "dom.js"),
    file!("/highlight.js", JS, "highlight.js"),
    file!("/inline.js", JS, "inline.js"),
    file!("/leaves.js", JS, "leaves.js"),
    file!("/markdown.js", JS, "markdown.js"),
    file!("/message.js", JS, "message.js"),
    file!("/settings.js", JS, "settings.js"),
    file!("/sidebar.js", JS, "sidebar.js"),
    file!("/store.js", JS, "store.js"),
    file!("/stream.js", JS, "stream.js"),
    file!("/style.css", CSS, "style.css"),
    file!("/theme.js", JS, "theme.js"),
    file!("/thread.js", JS, "thread.js"),
    file!("/tree.js", JS, "tree.js"),
];

/// Adds the page's routes.
pub fn routes(router: Router<Shared>) -> Router<Shared> {
    FILES.iter().fold(router, |router, &(path, kind, text)| {
        router.route(path, get(move || async move { file(kind, text) }))
    })
}

fn file(kind: &'static str, text: &'static str) -> impl IntoResponse {
    const HEADERS: [(HeaderName, &str); 4] = [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        // Another version of the program may be behind the same address tomorrow.
        (header::CACHE_CONTROL, "no-cache"),
    ];
    ([(header::CONTENT_TYPE, kind)], HEADERS, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_of_the_page_is_served() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/web");
        for entry in std::fs::read_dir(folder).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let path = match name.as_str() {
                "index.html" => "/".to_owned(),
                name => format!("/{name}"),
            };
            assert!(FILES.iter().any(|file| file.0 == path), "{path} is missing");
        }
    }
}
