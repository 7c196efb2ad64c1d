//! What the types cannot say of the tools daemon's section.

use crate::ports;
use crate::tree::{Embedding, ToolServer, Tools};

use super::Findings;

/// Longest name of a tool server, so that `SERVER__TOOL` stays a name.
const MAX_NAME: usize = 32;

impl Findings {
    pub(super) fn tools(&mut self, tools: &Tools) {
        for (key, value) in [
            ("tools.circuit_after", tools.circuit_after),
            ("tools.search.threads", tools.search.threads),
            ("tools.search.limit", tools.search.limit),
            ("tools.gateway.max_sessions", tools.gateway.max_sessions),
        ] {
            if value == 0 {
                self.add(key, "must be at least 1");
            }
        }
        for (name, server) in &tools.servers {
            self.server(name, server);
        }
        for (place, range) in tools.discovery.ports.iter().enumerate() {
            if let Err(error) = ports::parse(range) {
                self.add(&format!("tools.discovery.ports[{place}]"), &error);
            }
        }
        for (unit, url) in &tools.discovery.unit_urls {
            self.http(&format!("tools.discovery.unit_urls.{unit}"), url);
        }
        let search = &tools.search;
        if let Some(url) = &search.url {
            self.http("tools.search.url", url);
        }
        self.absolute("tools.search.api_key_file", search.api_key_file.as_deref());
        if search.embedding != Embedding::None && search.model.is_empty() {
            self.add(
                "tools.search.model",
                "names no model; set one, or `embedding = \"none\"` to search by words alone",
            );
        }
        for (place, rule) in tools.policy.iter().enumerate() {
            if rule.tools.is_empty() {
                self.add(
                    &format!("tools.policy[{place}].tools"),
                    "names no tool; write for example [\"git__*\"], or [\"*\"] for all",
                );
            }
        }
        for (name, toolset) in &tools.toolsets {
            let good = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            if name.is_empty() || !name.chars().all(good) {
                self.add(
                    &format!("tools.toolsets.{name}"),
                    "stands in a URL: use letters, digits, `-`, `_` and `.` only",
                );
            }
            if toolset.tools.is_empty() {
                self.add(
                    &format!("tools.toolsets.{name}.tools"),
                    "names no tool; write for example [\"git__*\"], or [\"*\"] for all",
                );
            }
            for other in tools.toolsets.iter().filter(|(other, _)| *other < name) {
                if let Some(shared) = toolset.keys.iter().find(|key| other.1.keys.contains(key)) {
                    self.add(
                        &format!("tools.toolsets.{name}.keys"),
                        &format!("`{shared}` is in toolset `{}` too; a key sees one toolset", other.0),
                    );
                }
            }
        }
    }

    fn server(&mut self, name: &str, server: &ToolServer) {
        let key = |field: &str| format!("tools.servers.{name}.{field}");
        let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c);
        let begins = name.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
        if !begins || name.len() > MAX_NAME || !name.chars().all(good) || name.contains("__") || name.ends_with('_') {
            self.add(
                &format!("tools.servers.{name}"),
                "a tool server's name has 1 to 32 of a-z, 0-9, `-`, `_` and `.`, begins with a letter or digit, and has neither `__` in it nor `_` at its end",
            );
        }
        match (&server.url, server.command.first()) {
            (None, None) => {
                self.add(&key("command"), "is missing; set `command` (a program that speaks MCP on stdio) or `url`");
            }
            (Some(_), Some(_)) => self.add(&key("url"), "set only one of `command` and `url`"),
            (Some(url), None) => self.http(&key("url"), url),
            (None, Some(program)) if program.is_empty() => {
                self.add(&key("command"), "begins with an empty program name");
            }
            (None, Some(_)) => {}
        }
        if server.url.is_some() {
            let given = [
                ("env", server.env.is_empty()),
                ("env_files", server.env_files.is_empty()),
                ("directory", server.directory.is_none()),
                ("read", server.read.is_empty()),
                ("write", server.write.is_empty()),
            ];
            for (field, _) in given.iter().filter(|(_, absent)| !absent) {
                self.add(&key(field), "is for programs; this server has a `url`");
            }
        } else if !server.header_files.is_empty() {
            self.add(&key("header_files"), "is for servers with a `url`; this one is a program (see `env_files`)");
        }
        self.absolute(&key("directory"), server.directory.as_deref());
        for (variable, path) in &server.env_files {
            self.absolute(&key(&format!("env_files.{variable}")), Some(path));
        }
        for (header, path) in &server.header_files {
            self.absolute(&key(&format!("header_files.{header}")), Some(path));
        }
        if server.max_concurrent == 0 {
            self.add(&key("max_concurrent"), "must be at least 1");
        }
    }

    fn http(&mut self, key: &str, url: &str) {
        if !(url.starts_with("http://") || url.starts_with("https://")) {
            self.add(key, &format!("`{url}` must be an http:// or https:// URL"));
        }
    }
}
