//! From JSON to [`McpConfig`].

use std::{
    collections::{BTreeMap, HashSet},
    path::Path,
    time::Duration,
};

use serde_json::{Map, Value};

use super::{McpConfig, McpConfigError, McpServerConfig, McpSource};

type Result<T> = std::result::Result<T, McpConfigError>;

impl McpConfig {
    /// Reads a file of JSON.
    ///
    /// # Errors
    /// [`McpConfigError`], naming the file, the server and the field.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path).map_err(|source| McpConfigError::Io {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(&text).map_err(|source| McpConfigError::File {
            path: path.to_owned(),
            source: Box::new(source),
        })
    }

    /// Reads JSON.
    ///
    /// # Errors
    /// [`McpConfigError`], naming the server and the field.
    pub fn parse(json: &str) -> Result<Self> {
        let mut top = Fields::new(serde_json::from_str(json)?, "the configuration".into())?;
        let mut config = McpConfig::default();
        if let Some(seconds) = top.seconds("tool_timeout_secs")? {
            config.tool_timeout = seconds;
        }
        if let Some(most) = top.whole("max_concurrent_calls")? {
            config.max_concurrent_calls = usize::try_from(most).unwrap_or(usize::MAX);
        }
        if let Some(auto) = top.flag("auto_register_tools")? {
            config.auto_register_tools = auto;
        }
        match (top.take("mcpServers"), top.take("servers")) {
            (Some(_), Some(_)) => {
                return Err(field("servers", "beside mcpServers: give one of them"));
            }
            (Some(Value::Object(servers)), None) => {
                for (name, value) in servers {
                    config.servers.push(by_name(name, value)?);
                }
            }
            (Some(_), None) => return Err(field("mcpServers", "expected an object of servers")),
            (None, Some(Value::Array(servers))) => {
                for (i, value) in servers.into_iter().enumerate() {
                    config.servers.push(listed(i, value)?);
                }
            }
            (None, Some(_)) => return Err(field("servers", "expected a list of servers")),
            (None, None) => {}
        }
        top.finish(
            "mcpServers or servers, tool_timeout_secs, max_concurrent_calls, auto_register_tools",
        )?;
        config.validate()?;
        Ok(config)
    }

    /// Refuses what cannot be, however it was made.
    ///
    /// # Errors
    /// [`McpConfigError::Field`].
    pub fn validate(&self) -> Result<()> {
        if self.max_concurrent_calls == 0 {
            return Err(field("max_concurrent_calls", "0, at least 1 is needed"));
        }
        if self.tool_timeout.is_zero() {
            return Err(field("tool_timeout_secs", "0, at least 1 is needed"));
        }
        let mut names = HashSet::new();
        for server in &self.servers {
            let place = format!("the server {:?}", server.name);
            if server.name.is_empty() {
                return Err(field(&place, "its name is empty"));
            }
            if !names.insert(&server.name) {
                return Err(field(
                    &place,
                    "there are two of this name; each needs its own",
                ));
            }
            match &server.source {
                McpSource::Process { command, .. } if command.is_empty() => {
                    return Err(field(&format!("{place}: command"), "it is empty"));
                }
                McpSource::Http { url, .. } => {
                    let known = ["http://", "https://"].iter().any(|s| url.starts_with(s));
                    if !known || reqwest::Url::parse(url).is_err() {
                        let reason = format!("{url:?} is no address of http:// or https://");
                        return Err(field(&format!("{place}: url"), &reason));
                    }
                }
                McpSource::Process { .. } => {}
            }
        }
        Ok(())
    }
}

/// `{"command": .., "args": .., "env": .., "cwd": ..}` or `{"url": .., "headers": ..}`.
fn by_name(name: String, value: Value) -> Result<McpServerConfig> {
    let mut fields = Fields::new(value, format!("the server {name:?}"))?;
    let kind = fields.text("type")?;
    let wanted = match (kind.as_deref(), fields.has("command"), fields.has("url")) {
        (None, true, true) => {
            return Err(fields.error("url", "beside command: give one of them"));
        }
        (Some("stdio"), ..) | (None, true, false) => "command",
        (Some("http" | "streamable-http" | "streamableHttp" | "streamable_http"), ..)
        | (None, false, true) => "url",
        (Some(other), ..) => return Err(unknown_transport(&fields, "type", other, "stdio, http")),
        (None, false, false) => return Err(fields.error("command", "either it or url is needed")),
    };
    let source = match wanted {
        "command" => process(&mut fields, "cwd")?,
        _ => http(&mut fields)?,
    };
    finish(name, source, fields)
}

/// `{"name": .., "source": {"type": .., ..}, ..}`.
fn listed(i: usize, value: Value) -> Result<McpServerConfig> {
    let mut fields = Fields::new(value, format!("servers[{i}]"))?;
    let name = fields.needed("name")?;
    fields.place = format!("the server {name:?}");
    let _ = fields.text("id")?;
    match fields.take("resources") {
        None => {}
        Some(Value::Array(list)) if list.is_empty() => {}
        Some(_) => {
            let reason = "a choice of resources cannot be honoured: leave it out";
            return Err(fields.error("resources", reason));
        }
    }
    let Some(source) = fields.take("source") else {
        return Err(fields.error("source", "it is missing"));
    };
    let mut source = Fields::new(source, format!("{}: source", fields.place))?;
    let kind = source.needed("type")?;
    let read = match kind.as_str() {
        "Process" => process(&mut source, "work_dir")?,
        "Http" => http(&mut source)?,
        other => return Err(unknown_transport(&source, "type", other, "Process, Http")),
    };
    source.finish(&allowed(&read, "work_dir"))?;
    finish(name, read, fields)
}

fn process(fields: &mut Fields, folder: &str) -> Result<McpSource> {
    Ok(McpSource::Process {
        command: fields.needed("command")?,
        args: fields.texts("args")?,
        env: fields.pairs("env")?,
        work_dir: fields.text(folder)?.map(Into::into),
    })
}

fn http(fields: &mut Fields) -> Result<McpSource> {
    Ok(McpSource::Http {
        url: fields.needed("url")?,
        headers: fields.pairs("headers")?,
        bearer_token: None,
        timeout: fields.seconds("timeout_secs")?,
    })
}

fn finish(name: String, mut source: McpSource, mut fields: Fields) -> Result<McpServerConfig> {
    let tool_prefix = fields.text("tool_prefix")?.filter(|p| !p.is_empty());
    let enabled = fields.flag("enabled")?;
    let disabled = fields.flag("disabled")?;
    if let Some(token) = fields.text("bearer_token")? {
        match &mut source {
            McpSource::Http { bearer_token, .. } => *bearer_token = Some(token),
            McpSource::Process { .. } => {
                let reason = "a program takes no token: give it in env";
                return Err(fields.error("bearer_token", reason));
            }
        }
    }
    fields.finish(&allowed(&source, "cwd"))?;
    Ok(McpServerConfig {
        name,
        source,
        tool_prefix,
        enabled: enabled.unwrap_or(true) && !disabled.unwrap_or(false),
    })
}

fn allowed(source: &McpSource, folder: &str) -> String {
    let own = match source {
        McpSource::Process { .. } => format!("command, args, env, {folder}"),
        McpSource::Http { .. } => "url, headers, timeout_secs, bearer_token".into(),
    };
    format!("{own}, tool_prefix, enabled")
}

fn unknown_transport(fields: &Fields, name: &str, got: &str, known: &str) -> McpConfigError {
    let hint = match got.to_ascii_lowercase().as_str() {
        "sse" => "; it is the transport before streamable HTTP, which most such servers offer too",
        _ => "",
    };
    fields.error(
        name,
        &format!("the transport {got:?} is not known{hint}; known are {known}"),
    )
}

fn field(place: &str, reason: &str) -> McpConfigError {
    McpConfigError::Field {
        place: place.to_owned(),
        reason: reason.to_owned(),
    }
}

/// An object whose fields are taken one by one, so that none is overlooked.
struct Fields {
    map: Map<String, Value>,
    place: String,
}

impl Fields {
    fn new(value: Value, place: String) -> Result<Self> {
        match value {
            Value::Object(map) => Ok(Fields { map, place }),
            _ => Err(field(&place, "expected an object")),
        }
    }

    fn error(&self, name: &str, reason: &str) -> McpConfigError {
        field(&format!("{}: {name}", self.place), reason)
    }

    fn has(&self, name: &str) -> bool {
        self.map.get(name).is_some_and(|value| !value.is_null())
    }

    fn take(&mut self, name: &str) -> Option<Value> {
        self.map.shift_remove(name).filter(|value| !value.is_null())
    }

    fn text(&mut self, name: &str) -> Result<Option<String>> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.error(name, "expected a text")),
        }
    }

    fn needed(&mut self, name: &str) -> Result<String> {
        let text = self.text(name)?;
        text.ok_or_else(|| self.error(name, "it is missing"))
    }

    fn flag(&mut self, name: &str) -> Result<Option<bool>> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(_) => Err(self.error(name, "expected true or false")),
        }
    }

    fn whole(&mut self, name: &str) -> Result<Option<u64>> {
        let Some(value) = self.take(name) else {
            return Ok(None);
        };
        let whole = value.as_u64().filter(|n| *n > 0);
        let reason = || format!("{value}, expected a whole number of at least 1");
        whole.map(Some).ok_or_else(|| self.error(name, &reason()))
    }

    fn seconds(&mut self, name: &str) -> Result<Option<Duration>> {
        Ok(self.whole(name)?.map(Duration::from_secs))
    }

    fn texts(&mut self, name: &str) -> Result<Vec<String>> {
        let wrong = "expected a list of texts";
        let list = match self.take(name) {
            None => return Ok(Vec::new()),
            Some(Value::Array(list)) => list,
            Some(_) => return Err(self.error(name, wrong)),
        };
        let text = |value| match value {
            Value::String(text) => Ok(text),
            _ => Err(self.error(name, wrong)),
        };
        list.into_iter().map(text).collect()
    }

    fn pairs(&mut self, name: &str) -> Result<BTreeMap<String, String>> {
        let map = match self.take(name) {
            None => return Ok(BTreeMap::new()),
            Some(Value::Object(map)) => map,
            Some(_) => return Err(self.error(name, "expected an object of texts")),
        };
        let pair = |(key, value)| match value {
            Value::String(text) => Ok((key, text)),
            _ => Err(self.error(&format!("{name}.{key}"), "expected a text")),
        };
        map.into_iter().map(pair).collect()
    }

    /// Refuses what nobody took.
    fn finish(self, allowed: &str) -> Result<()> {
        let Some(name) = self.map.keys().next() else {
            return Ok(());
        };
        if name.to_ascii_lowercase().contains("oauth") {
            let reason = "OAuth cannot be used; get a token elsewhere, and give it as bearer_token or in headers";
            return Err(self.error(name, reason));
        }
        Err(self.error(
            name,
            &format!("there is no such field; there are {allowed}"),
        ))
    }
}
