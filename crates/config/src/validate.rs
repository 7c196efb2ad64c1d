//! What the types cannot say: values that are out of range or do not work together.

mod tools;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use crate::error::Problem;
use crate::tree::{Config, HealedUnit, Healer, KvType, Model, Toggle};

/// Everything that is wrong with a tree whose types are right.
pub(crate) fn validate(config: &Config) -> Vec<Problem> {
    let mut found = Findings::default();
    found.absolute("state_dir", Some(&config.state_dir));
    found.absolute("llama.models_dir", config.llama.models_dir.as_deref());
    found.absolute("llama.engines_dir", config.llama.engines_dir.as_deref());
    found.absolute("ralph.worktrees_dir", config.ralph.worktrees_dir.as_deref());
    if config.store.pool_size == 0 {
        found.add("store.pool_size", "must be at least 1");
    }
    if config.store.vectors.dimensions == 0 {
        found.add("store.vectors.dimensions", "must be the width of the embedding model, for example 384");
    }
    for (name, model) in &config.models {
        found.model(name, model);
    }
    found.names(config);
    found.ports(config);
    for (name, upstream) in &config.coordinator.upstreams {
        let key = format!("coordinator.upstreams.{name}");
        if !(upstream.url.starts_with("http://") || upstream.url.starts_with("https://")) {
            found.add(&format!("{key}.url"), "must be an http:// or https:// URL that ends in /v1");
        }
        if upstream.models.is_empty() {
            found.add(&format!("{key}.models"), "names no model; write for example `models = { coder = \"gpt-4o\" }`");
        }
        if upstream.max_in_flight == 0 {
            found.add(&format!("{key}.max_in_flight"), "must be at least 1");
        }
    }
    let ralph = &config.ralph;
    if ralph.workers == 0 {
        found.add("ralph.workers", "must be at least 1");
    }
    if ralph.max_iterations == 0 {
        found.add("ralph.max_iterations", "must be at least 1");
    }
    found.healer(&config.healer);
    found.tools(&config.tools);
    for (key, value, least) in [
        ("healer.cooldown", config.healer.cooldown, Duration::from_secs(1)),
        ("healer.backoff_max", config.healer.backoff_max, config.healer.cooldown),
        ("healer.circuit_open", config.healer.circuit_open, Duration::from_secs(1)),
        ("healer.verify_hold", config.healer.verify_hold, Duration::from_millis(100)),
        ("healer.verify_timeout", config.healer.verify_timeout, config.healer.verify_hold),
        ("healer.patience", config.healer.patience, Duration::from_secs(1)),
        ("tools.start_timeout", config.tools.start_timeout, Duration::from_millis(100)),
        ("tools.list_timeout", config.tools.list_timeout, Duration::from_millis(100)),
        ("tools.call_timeout", config.tools.call_timeout, Duration::from_millis(100)),
        ("tools.circuit_open", config.tools.circuit_open, Duration::from_millis(100)),
        ("tools.discovery.interval", config.tools.discovery.interval, Duration::from_secs(1)),
        ("tools.gateway.session_idle", config.tools.gateway.session_idle, Duration::from_secs(1)),
        ("ralph.lease", ralph.lease, Duration::from_secs(3)),
        ("ralph.timeout", ralph.timeout, Duration::from_secs(1)),
        ("ralph.iteration_timeout", ralph.iteration_timeout, Duration::from_secs(1)),
        ("ralph.check_timeout", ralph.check_timeout, Duration::from_secs(1)),
        ("store.connect_timeout", config.store.connect_timeout, Duration::from_millis(100)),
        ("gate.keys_refresh", config.gate.keys_refresh, Duration::from_secs(1)),
        ("gate.keys_max_age", config.gate.keys_max_age, config.gate.keys_refresh),
        ("units.start_timeout", config.units.start_timeout, Duration::from_secs(1)),
        ("units.restart_delay", config.units.restart_delay, Duration::from_millis(1)),
        ("units.restart_delay_max", config.units.restart_delay_max, config.units.restart_delay),
        ("coordinator.first_byte_timeout", config.coordinator.first_byte_timeout, Duration::from_millis(100)),
        ("coordinator.idle_timeout", config.coordinator.idle_timeout, Duration::from_millis(100)),
    ] {
        if value < least {
            found.add(key, &format!("must be at least {}", crate::duration::format(least)));
        }
    }
    // Shutdown has 10 s in all: the units, one after the other where they depend on each other, and what is left.
    if config.units.stop_timeout > Duration::from_secs(8) {
        found.add("units.stop_timeout", "must be at most 8s, so that everything has stopped within 10s");
    }
    found.0
}

#[derive(Default)]
struct Findings(Vec<Problem>);

impl Findings {
    fn add(&mut self, key: &str, message: &str) {
        self.0.push(Problem { key: key.to_owned(), message: message.to_owned(), origin: String::new() });
    }

    fn absolute(&mut self, key: &str, path: Option<&Path>) {
        if let Some(path) = path
            && !path.is_absolute()
        {
            self.add(key, &format!("`{}` must be an absolute path", path.display()));
        }
    }

    fn model(&mut self, name: &str, model: &Model) {
        let key = |field: &str| format!("models.{name}.{field}");
        let good = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if name.is_empty() || !name.starts_with(|c: char| c.is_ascii_alphanumeric()) || !name.chars().all(good) {
            self.add(
                &format!("models.{name}"),
                "a model's name has letters, digits, `-`, `_` and `.` only and starts with a letter or digit",
            );
        }
        let places = [model.source.is_some(), model.path.is_some(), model.url.is_some()];
        match places.iter().filter(|set| **set).count() {
            1 => {}
            0 => self.add(
                &format!("models.{name}"),
                "says nowhere where the model is; set `source` (a catalog name, see `lares model list`), `path`, or `url` with `sha256`",
            ),
            _ => self.add(&format!("models.{name}"), "set only one of `source`, `path` and `url`"),
        }
        let hexadecimal = |text: &str| text.len() == 64 && text.chars().all(|c| c.is_ascii_hexdigit());
        match (&model.url, &model.sha256) {
            (Some(_), None) => {
                self.add(&key("sha256"), "is missing: a file from a `url` is used only when its hash is known");
            }
            (Some(url), _) if !(url.starts_with("http://") || url.starts_with("https://")) => {
                self.add(&key("url"), "must be an http:// or https:// URL");
            }
            _ => {}
        }
        if let Some(hash) = &model.sha256
            && !hexadecimal(hash)
        {
            self.add(&key("sha256"), "must be 64 hexadecimal digits");
        }
        self.absolute(&key("path"), model.path.as_deref());
        for (field, value) in [
            ("context_size", model.context_size),
            ("slots", model.slots),
            ("batch_size", model.batch_size),
            ("micro_batch_size", model.micro_batch_size),
            ("threads", model.threads.unwrap_or(1)),
        ] {
            if value == 0 {
                self.add(&key(field), "must be at least 1");
            }
        }
        if model.micro_batch_size > model.batch_size {
            self.add(&key("micro_batch_size"), &format!("must not be larger than batch_size ({})", model.batch_size));
        }
        let quantised = !matches!(model.kv_type, KvType::F32 | KvType::F16 | KvType::Bf16);
        if quantised && model.flash_attention == Toggle::Off {
            self.add(&key("kv_type"), "a quantised KV cache needs flash attention; set `flash_attention = \"on\"`");
        }
    }

    fn healer(&mut self, healer: &Healer) {
        for (key, value) in [
            ("healer.max_per_hour", healer.max_per_hour),
            ("healer.max_per_minute", healer.max_per_minute),
            ("healer.circuit_after", healer.circuit_after),
            ("healer.approve_after", healer.approve_after),
        ] {
            if value == 0 {
                self.add(key, "must be at least 1");
            }
        }
        self.absolute("healer.patterns_file", healer.patterns_file.as_deref());
        self.absolute("healer.helper", Some(&healer.helper));
        for (name, unit) in &healer.units {
            self.healed(name, unit);
        }
    }

    fn healed(&mut self, name: &str, unit: &HealedUnit) {
        let key = |field: &str| format!("healer.units.{name}.{field}");
        self.service(&format!("healer.units.{name}"), name);
        for needed in &unit.dependencies {
            self.service(&key("dependencies"), needed);
            if needed == name {
                self.add(&key("dependencies"), "a unit cannot need itself");
            }
        }
        if let Some(database) = &unit.database {
            self.service(&key("database"), database);
        }
        let probe = &unit.probe;
        if [probe.http.is_some(), probe.tcp.is_some(), !probe.command.is_empty()].iter().filter(|set| **set).count() > 1
        {
            self.add(&key("probe"), "set only one of `http`, `tcp` and `command`");
        }
        if let Some(url) = &probe.http
            && !(url.starts_with("http://") || url.starts_with("https://"))
        {
            self.add(&key("probe.http"), "must be an http:// or https:// URL");
        }
        self.absolute(&key("probe.command"), probe.command.first().map(Path::new));
        for (field, value) in [("probe.interval", probe.interval), ("probe.timeout", probe.timeout)] {
            if value < Duration::from_millis(100) {
                self.add(&key(field), "must be at least 100ms");
            }
        }
        if probe.threshold == 0 {
            self.add(&key("probe.threshold"), "must be at least 1");
        }
        if unit.ports.contains(&0) {
            self.add(&key("ports"), "0 is not a port");
        }
        let variable = unit.port_variable.as_deref().unwrap_or_default();
        let others =
            unit.port_variables.iter().map(|(of, variable)| ("port_variables", of.as_str(), variable.as_str()));
        for (field, _, variable) in others.chain([("port_variable", name, variable)]) {
            let good = |c: char| c.is_ascii_alphanumeric() || c == '_';
            if !variable.chars().all(good) || variable.starts_with(|c: char| c.is_ascii_digit()) {
                self.add(&key(field), "must be the name of an environment variable, such as `PORT`");
            }
        }
        for of in unit.port_variables.keys() {
            self.service(&key("port_variables"), of);
        }
        self.absolute(&key("database_file"), unit.database_file.as_deref());
        if !unit.ports.is_empty() && variable.is_empty() {
            self.add(&key("ports"), "needs `port_variable`: the environment variable that tells the unit its port");
        }
    }

    /// A name that systemd would take for a service, so that nothing else can be reached by it.
    fn service(&mut self, key: &str, name: &str) {
        let good = |c: char| c.is_ascii_alphanumeric() || "-_.:@\\".contains(c);
        let stem = name.strip_suffix(".service").unwrap_or_default();
        if stem.is_empty() || name.len() > 255 || !stem.chars().all(good) {
            self.add(key, &format!("`{name}` is not the full name of a service, such as `app.service`"));
        }
    }

    /// A name or alias may stand for one local model only.
    fn names(&mut self, config: &Config) {
        let mut owners: BTreeMap<&str, &str> =
            config.models.keys().map(|name| (name.as_str(), name.as_str())).collect();
        for (name, model) in &config.models {
            for alias in &model.aliases {
                match owners.insert(alias, name) {
                    Some(other) if other != name || alias == name => {
                        self.add(
                            &format!("models.{name}.aliases"),
                            &format!("`{alias}` is a name of `{other}` already"),
                        );
                    }
                    _ => {}
                }
            }
        }
    }

    /// No two surfaces on one port.
    fn ports(&mut self, config: &Config) {
        let mut taken: BTreeMap<u16, String> = BTreeMap::new();
        let mut claim = |found: &mut Self, key: String, port: u16| {
            if port == 0 {
                return;
            }
            if let Some(other) = taken.get(&port) {
                found.add(&key, &format!("port {port} is used by {other} already"));
            } else {
                taken.insert(port, key);
            }
        };
        claim(self, "coordinator.listen".to_owned(), config.coordinator.listen.port());
        claim(self, "ralph.listen".to_owned(), config.ralph.listen.port());
        claim(self, "healer.listen".to_owned(), config.healer.listen.port());
        claim(self, "tools.listen".to_owned(), config.tools.listen.port());
        for (name, model) in &config.models {
            claim(self, format!("models.{name}.port"), model.port);
        }
        for (key, address) in [
            ("coordinator.listen", config.coordinator.listen),
            ("ralph.listen", config.ralph.listen),
            ("healer.listen", config.healer.listen),
            ("tools.listen", config.tools.listen),
        ] {
            self.loopback(key, address);
        }
    }

    /// Keys travel in clear text, so they stay on this machine.
    fn loopback(&mut self, key: &str, address: SocketAddr) {
        if !address.ip().is_loopback() {
            self.add(
                key,
                &format!("{address} is not a loopback address; there is no TLS here: listen on 127.0.0.1 and put a TLS proxy in front"),
            );
        }
    }
}
