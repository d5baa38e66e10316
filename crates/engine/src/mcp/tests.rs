//! Tests of configurations and names.

use std::time::Duration;

use super::{McpConfig, McpSource, register::fit};

#[test]
fn servers_by_name_are_read() {
    let config = McpConfig::parse(
        r#"{"mcpServers": {
            "files": {"command": "mcp-files", "args": ["--root", "."], "env": {"A": "b"}, "cwd": "/tmp"},
            "web": {"type": "http", "url": "https://example.org/mcp", "headers": {"X-Key": "k"}, "disabled": true}
        }}"#,
    )
    .unwrap();
    let [files, web] = &config.servers[..] else {
        panic!("{config:?}");
    };
    assert_eq!((files.name.as_str(), files.enabled), ("files", true));
    let McpSource::Process {
        command,
        args,
        env,
        work_dir,
    } = &files.source
    else {
        panic!("{files:?}");
    };
    assert_eq!(
        (command.as_str(), args.len(), env["A"].as_str()),
        ("mcp-files", 2, "b")
    );
    assert_eq!(work_dir.as_deref(), Some("/tmp".as_ref()));
    assert!(!web.enabled);
    assert!(matches!(&web.source, McpSource::Http { headers, .. } if headers["X-Key"] == "k"));
}

#[test]
fn listed_servers_are_read() {
    let config = McpConfig::parse(
        r#"{"servers": [
            {"id": "1", "name": "web", "source": {"type": "Http", "url": "http://localhost:1/mcp",
             "timeout_secs": 7, "headers": null}, "bearer_token": "t", "tool_prefix": "w"},
            {"name": "files", "source": {"type": "Process", "command": "f", "work_dir": "/x"}, "enabled": false}
        ], "tool_timeout_secs": 5, "max_concurrent_calls": 3, "auto_register_tools": false}"#,
    )
    .unwrap();
    assert_eq!(config.tool_timeout, Duration::from_secs(5));
    assert_eq!(
        (config.max_concurrent_calls, config.auto_register_tools),
        (3, false)
    );
    let web = &config.servers[0];
    assert_eq!(web.tool_prefix.as_deref(), Some("w"));
    let McpSource::Http {
        bearer_token,
        timeout,
        ..
    } = &web.source
    else {
        panic!("{web:?}");
    };
    assert_eq!(bearer_token.as_deref(), Some("t"));
    assert_eq!(*timeout, Some(Duration::from_secs(7)));
    assert!(!config.servers[1].enabled);
    assert!(
        !format!("{config:?}").contains("\"t\""),
        "secrets are not shown"
    );
}

#[test]
fn what_cannot_be_is_named() {
    for (json, wanted) in [
        ("[]", "the configuration: expected an object"),
        ("{", "it is no JSON"),
        (
            r#"{"server": []}"#,
            "the configuration: server: there is no such field",
        ),
        (
            r#"{"servers": [], "mcpServers": {}}"#,
            "servers: beside mcpServers",
        ),
        (r#"{"servers": [{}]}"#, "servers[0]: name: it is missing"),
        (
            r#"{"mcpServers": {"a": {}}}"#,
            "the server \"a\": command: either it or url",
        ),
        (
            r#"{"mcpServers": {"a": {"command": "x", "url": "y"}}}"#,
            "the server \"a\": url: beside",
        ),
        (
            r#"{"mcpServers": {"a": {"command": 1}}}"#,
            "the server \"a\": command: expected a text",
        ),
        (
            r#"{"mcpServers": {"a": {"command": "x", "env": {"B": 1}}}}"#,
            "env.B: expected a text",
        ),
        (
            r#"{"mcpServers": {"a": {"command": "x", "arg": []}}}"#,
            "arg: there is no such field",
        ),
        (
            r#"{"mcpServers": {"a": {"url": "ftp://x"}}}"#,
            "the server \"a\": url: \"ftp://x\" is no",
        ),
        (
            r#"{"mcpServers": {"a": {"type": "sse", "url": "http://x"}}}"#,
            "transport \"sse\"",
        ),
        (
            r#"{"mcpServers": {"a": {"url": "http://x", "oauth": {}}}}"#,
            "oauth: OAuth cannot be used",
        ),
        (
            r#"{"servers": [{"name": "a", "source": {"type": "WebSocket", "url": "ws://x"}}]}"#,
            "\"WebSocket\" is not known",
        ),
        (
            r#"{"servers": [{"name": "a", "source": {"type": "Process", "command": "x"}, "bearer_token": "t"}]}"#,
            "bearer_token: a program takes no token",
        ),
        (
            r#"{"max_concurrent_calls": 0}"#,
            "max_concurrent_calls: 0, expected",
        ),
    ] {
        let error = McpConfig::parse(json).unwrap_err().to_string();
        assert!(error.contains(wanted), "{json}: {error}");
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("mcp.json");
    let missing = McpConfig::read(&file).unwrap_err().to_string();
    assert!(missing.contains("mcp.json"), "{missing}");
    std::fs::write(&file, "{}").unwrap();
    assert_eq!(McpConfig::read(&file).unwrap(), McpConfig::default());
    std::fs::write(&file, r#"{"mcpServers": 1}"#).unwrap();
    let wrong = McpConfig::read(&file).unwrap_err().to_string();
    assert!(wrong.contains("mcp.json: mcpServers: expected"), "{wrong}");
}

#[test]
fn names_fit() {
    assert_eq!(fit("read file!"), "read_file_");
    assert_eq!(fit("a.b/c-d_e"), "a.b/c-d_e");
    assert_eq!(fit(&"ä".repeat(100)), "_".repeat(64));
}
