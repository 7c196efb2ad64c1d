//! What `lares up` runs: from a configuration to units that can be started.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use lares_config::{Config, Embedding, HealedUnit, HealthProbe, Model};
use lares_gate::secret::{self, Secret};
use lares_llama::catalog::{self, Origin};
use lares_llama::gguf::Metadata;
use lares_llama::memory::{self, Prediction};
use lares_llama::options::{self, Placement};
use lares_llama::pull::Puller;
use lares_llama::server::Server;
use lares_llama::{engine, install, machine, progress};
use lares_store::cluster::Cluster;
use lares_store::{Role, Store};
use lares_units::{Probe, StopSignal, UnitName, UnitSpec};
use tokio::sync::OnceCell;
use tokio::task::spawn_blocking;

use crate::cli::{Global, exit};
use crate::output::Output;
use crate::{configuration, key, output};

/// The model of a stack for which none is configured.
pub const DEFAULT_MODEL: &str = "qwen2.5-coder-0.5b-instruct";
/// First port tried for a local model.
const FIRST_MODEL_PORT: u16 = 8080;
/// How OpenMP's threads wait; a person's own setting wins.
const WAIT_POLICY: &str = "OMP_WAIT_POLICY";

/// A stack that can be started: every file is there, every port is chosen, the memory suffices.
pub struct Stack {
    /// The configuration the daemons get, with the chosen ports in it.
    pub config: Config,
    models: Vec<Served>,
    cluster: Option<Cluster>,
}

/// A model that can be served: its file, the memory it takes, and the command line.
pub struct Served {
    name: String,
    file: PathBuf,
    metadata: Metadata,
    /// The memory it takes.
    pub prediction: Prediction,
    server: Arc<Server>,
    /// llama-server's arguments.
    pub args: Vec<std::ffi::OsString>,
}

impl Served {
    /// The llama-server binary.
    pub fn program(&self) -> &Path {
        &self.server.path
    }
}

/// A `llama-server` and the machine it runs on.
pub struct Engine {
    server: Arc<Server>,
    cores: u32,
}

impl Engine {
    /// The one there is.
    ///
    /// # Errors
    /// When there is none.
    pub async fn find(config: &Config) -> Result<Self> {
        let config = config.clone();
        let path = spawn_blocking(move || engine::find(&config)).await??;
        Self::of(Server::probe(&path).await?).await
    }

    async fn of(server: Arc<Server>) -> Result<Self> {
        Ok(Self { server, cores: spawn_blocking(machine::physical_cores).await? })
    }

    /// How this binary serves `model` on its port.
    ///
    /// # Errors
    /// When the file cannot be served, or the binary cannot do what the configuration wants.
    pub async fn served(&self, name: &str, model: &Model, file: PathBuf, api_key_file: &Path) -> Result<Served> {
        let metadata = metadata_of(&file).await?;
        let placement =
            Placement { name, file: &file, port: model.port, cores: self.cores, api_key_file: Some(api_key_file) };
        let args = options::render(model, &metadata, &self.server, &placement)?;
        let prediction = memory::predict(model, &metadata);
        Ok(Served { name: name.to_owned(), file, metadata, prediction, server: Arc::clone(&self.server), args })
    }
}

/// The memory a model would take.
pub async fn predict(model: &Model, file: &Path) -> Result<Prediction> {
    Ok(memory::predict(model, &metadata_of(file).await?))
}

/// The variable that tells OpenMP's threads how to wait, unless a person has set it.
///
/// They spin while they wait for each other, and next to any other busy process they then mostly wait for a thread that
/// has no core: `make bench` shows two to three times the tokens/s without the spinning.
pub fn wait_policy() -> Option<(&'static str, &'static str)> {
    std::env::var_os(WAIT_POLICY).is_none().then_some((WAIT_POLICY, "passive"))
}

/// `lares setup`: what the daemons need before they start.
pub async fn setup(global: &Global) -> Result<u8> {
    let config = configuration::load(global)?.config;
    make_state_dir(&config.state_dir).await?;
    ensure_llama_key(&config).await?;
    // Connecting brings the tables up to date.
    let store = Store::connect(&config.store, &config.state_dir)
        .await
        .context("tables and keys are kept in PostgreSQL; set store.url to one that runs, or use `lares up`, which brings its own")?;
    ensure_keys(&store, &config).await?;
    let keys = [config.admin_key_file(), config.agent_key_file(), config.llama_key_file()];
    Output { json: global.json }.value(&serde_json::json!({ "state_dir": config.state_dir, "keys": keys }), |_| {
        let keys: Vec<_> = keys.iter().map(|key| format!("\n  {}", key.display())).collect();
        format!("ready in {}; the keys are in{}", config.state_dir.display(), keys.concat())
    })?;
    Ok(exit::OK)
}

/// Name of the unit that serves a model.
pub fn llama_unit(model: &str) -> String {
    format!("llama@{model}")
}

/// Makes the state directory and those in it that every command relies on.
pub async fn make_state_dir(state_dir: &Path) -> Result<()> {
    let directory = state_dir.to_owned();
    spawn_blocking(move || {
        // PostgreSQL's user has to be able to walk through the state directory; what must stay private is below.
        let made = |path: &Path, mode: u32| -> Result<()> {
            let existed = path.is_dir();
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(mode)
                .create(path)
                .with_context(|| format!("cannot make {}; name another place with --state-dir", path.display()))?;
            if !existed {
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
            }
            Ok(())
        };
        made(&directory, 0o711)?;
        for private in ["run", "keys", "logs"] {
            made(&directory.join(private), 0o700)?;
        }
        Ok(())
    })
    .await?
}

/// Fetches what a stack needs and does not have: the models' files, and `llama-server`.
pub async fn fetch(config: &Config) -> Result<()> {
    let mut known = config.clone();
    complete_models(&mut known);
    server(&known).await?;
    for (name, model) in &known.models {
        file_of(&known, name, model).await?;
    }
    embedding_model(&known).await
}

/// The model by which tools are found by meaning; fetched where it is not there.
async fn embedding_model(config: &Config) -> Result<()> {
    let name = &config.tools.search.model;
    if config.tools.search.embedding != Embedding::InProcess || Path::new(name).is_absolute() {
        return Ok(());
    }
    let artifact = catalog::find(name).context("tools.search.model")?.into();
    Puller::new(config.models_dir()).pull(&artifact, &*progress::on_stderr()).await?;
    Ok(())
}

/// A stack without a model would serve nobody.
fn complete_models(config: &mut Config) {
    if config.models.is_empty() && config.coordinator.upstreams.is_empty() {
        let model = Model { source: Some(DEFAULT_MODEL.to_owned()), ..Model::default() };
        config.models.insert("coder".to_owned(), model);
    }
}

/// The `llama-server` there is; built where there is none.
async fn server(config: &Config) -> Result<Arc<Server>> {
    let found = {
        let config = config.clone();
        spawn_blocking(move || engine::find(&config)).await?
    };
    let path = match found {
        Ok(path) => path,
        Err(engine::FindError::Nowhere(engines)) => install::install(&engines, &*progress::on_stderr()).await?,
        Err(error) => return Err(error.into()),
    };
    Ok(Server::probe(&path).await?)
}

/// A model's file; fetched where it is not there.
pub async fn file_of(config: &Config, name: &str, model: &Model) -> Result<PathBuf> {
    match catalog::origin(name, model)? {
        Origin::File(path) => Ok(path),
        Origin::Artifact(artifact) => {
            Ok(Puller::new(config.models_dir()).pull(&artifact, &*progress::on_stderr()).await?)
        }
    }
}

/// What a GGUF file says of itself.
pub async fn metadata_of(file: &Path) -> Result<Metadata> {
    let path = file.to_owned();
    spawn_blocking(move || Metadata::read(&path)).await?.with_context(|| format!("{} cannot be served", file.display()))
}

impl Stack {
    /// Everything that can be wrong is found here, before anything is started.
    pub async fn prepare(mut config: Config) -> Result<Self> {
        complete_models(&mut config);
        let mut ports = Ports::default();
        config.coordinator.listen = ports.claim("coordinator.listen", config.coordinator.listen)?;
        config.ralph.listen = ports.claim("ralph.listen", config.ralph.listen)?;
        config.healer.listen = ports.claim("healer.listen", config.healer.listen)?;
        config.tools.listen = ports.claim("tools.listen", config.tools.listen)?;

        let mut models = Vec::new();
        if !config.models.is_empty() {
            let engine = Engine::of(server(&config).await?).await?;
            let key_file = ensure_llama_key(&config).await?;
            for (name, model) in &mut config.models.clone() {
                let file = file_of(&config, name, model).await?;
                model.port = if model.port == 0 {
                    ports.free_from(FIRST_MODEL_PORT)?
                } else {
                    ports.claim(&format!("models.{name}.port"), (Ipv4Addr::LOCALHOST, model.port).into())?.port()
                };
                config.models.insert(name.clone(), model.clone());
                models.push(engine.served(name, model, file, &key_file).await?);
            }
            let predicted: Vec<_> = models.iter().map(|model| (model.name.clone(), model.prediction)).collect();
            let available = spawn_blocking(machine::available_memory).await?;
            memory::check_fit(&predicted, config.llama.memory_budget, available)?;
        }
        drop(ports);
        if let Err(error) = embedding_model(&config).await {
            // Nothing else waits for it, and it may come later.
            output::note(&format!("tools are found by their words alone: {error:#}"));
        }

        let cluster = if config.store.url.is_empty() && config.store.url_file.is_none() {
            Some(Cluster::prepare(&config).await?)
        } else {
            let store = Store::connect(&config.store, &config.state_dir).await?;
            ensure_keys(&store, &config).await?;
            None
        };
        Ok(Self { config, models, cluster })
    }

    /// The configuration for the daemons, where they are told to look for it.
    pub async fn write_configuration(&self) -> Result<()> {
        let path = configuration::effective_file(&self.config.state_dir);
        let text = self.config.to_toml()?;
        spawn_blocking(move || -> Result<()> {
            use std::io::Write as _;
            let fresh = path.with_extension("new");
            let mut file = std::fs::File::options().create(true).truncate(true).write(true).mode(0o600).open(&fresh)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&fresh, &path).with_context(|| format!("cannot write {}", path.display()))
        })
        .await?
    }

    /// What the healer needs to know to look after the units of this stack, which systemd does not know.
    pub fn healed(&self) -> Config {
        let mut config = self.config.clone();
        let mut units = BTreeMap::new();
        let mut add = |name: String, http: Option<String>, dependencies: &[&str]| {
            let probe = HealthProbe { http, ..HealthProbe::default() };
            let dependencies = dependencies.iter().map(|&name| name.to_owned()).collect();
            units.insert(name, HealedUnit { probe, dependencies, ..HealedUnit::default() });
        };
        let health = |address: SocketAddr| Some(format!("http://{address}/health"));
        let store: &[&str] = if self.cluster.is_some() { &["postgres"] } else { &[] };
        if self.cluster.is_some() {
            add("postgres".to_owned(), None, &[]);
        }
        for model in &self.models {
            let port = config.models[&model.name].port;
            add(llama_unit(&model.name), health((Ipv4Addr::LOCALHOST, port).into()), &[]);
        }
        add("coordinator".to_owned(), health(config.coordinator.listen), store);
        add("ralph".to_owned(), health(config.ralph.listen), store);
        add("tools".to_owned(), health(config.tools.listen), store);
        config.healer.units = units;
        config
    }

    /// Where the daemons of this stack find PostgreSQL.
    pub fn store_config(&self) -> lares_config::Store {
        self.config.store.clone()
    }

    /// The units, in the order they are shown.
    pub fn units(&self) -> Result<Vec<UnitSpec>> {
        let mut units = Vec::new();
        units.extend(self.postgres()?);
        for model in &self.models {
            units.push(self.llama(model)?);
        }
        let before: Vec<UnitName> = self.cluster.iter().map(|_| UnitName::new("postgres")).collect::<Result<_, _>>()?;
        let config = &self.config;
        units.push(self.daemon("coordinator", "OpenAI-compatible door", config.coordinator.listen, before.clone())?);
        units.push(self.daemon(
            "ralph",
            "works on tasks until their check passes",
            config.ralph.listen,
            before.clone(),
        )?);
        units.push(self.daemon(
            "tools",
            "MCP tools, found and called through one door",
            config.tools.listen,
            before,
        )?);
        Ok(units)
    }

    fn postgres(&self) -> Result<Option<UnitSpec>> {
        let Some(cluster) = &self.cluster else { return Ok(None) };
        let command = cluster.command();
        // `env -u` takes out what would change its settings; a unit inherits everything else.
        let mut unit = UnitSpec::new(UnitName::new("postgres")?, "env");
        for name in &command.env_remove {
            unit = unit.args([std::ffi::OsString::from("-u"), name.clone()]);
        }
        unit = unit.args([command.program.clone().into_os_string()]).args(command.args);
        unit.env = command.env.into_iter().collect();
        unit.description = "store of tasks, events and keys".to_owned();
        unit.detail = Some(cluster.url());
        unit.user = command.user.map(Into::into);
        unit.stop_signal = StopSignal::Interrupt;
        // Ready means ready for the daemons: they refuse to start without tables and keys.
        let once = Arc::new(OnceCell::new());
        let (cluster, config) = (cluster.clone(), Arc::new(self.config.clone()));
        unit.probe = Probe::check(move || {
            let (cluster, config, once) = (cluster.clone(), config.clone(), once.clone());
            async move {
                cluster.is_ready().await.map_err(|error| error.to_string())?;
                let keys = async {
                    let store = Store::connect(&config.store, &config.state_dir).await?;
                    ensure_keys(&store, &config).await
                };
                once.get_or_try_init(|| keys).await.copied().map_err(|error| format!("{error:#}"))
            }
        });
        Ok(Some(unit))
    }

    fn llama(&self, model: &Served) -> Result<UnitSpec> {
        let name = UnitName::new(llama_unit(&model.name))?;
        let address = format!("127.0.0.1:{}", self.config.models[&model.name].port);
        let mut unit = UnitSpec::new(name, &model.server.path).args(model.args.iter().cloned());
        let quantisation = model.metadata.quantisation.as_deref().unwrap_or("");
        let label = model.metadata.name.as_deref().unwrap_or("model");
        unit.description = format!("{label} {quantisation}").trim_end().to_owned();
        unit.probe = Probe::Http { url: format!("http://{address}/health") };
        unit.detail = Some(address);
        if let Some((name, value)) = wait_policy() {
            unit.env.insert(name.into(), value.into());
        }
        Ok(unit)
    }

    fn daemon(&self, name: &str, what: &str, listen: SocketAddr, after: Vec<UnitName>) -> Result<UnitSpec> {
        let program = std::env::current_exe().context("cannot find this program's own file, which the daemons run")?;
        let config = configuration::effective_file(&self.config.state_dir);
        let mut unit = UnitSpec::new(UnitName::new(name)?, "env");
        // The configuration has everything in it; variables and flags were applied already.
        let settings =
            std::env::vars_os().map(|(name, _)| name).filter(|name| name.to_string_lossy().starts_with("LARES_"));
        for variable in settings {
            unit = unit.args([std::ffi::OsString::from("-u"), variable]);
        }
        unit = unit.args([program.into_os_string(), "--config".into(), config.into(), "serve".into(), name.into()]);
        unit.description = what.to_owned();
        unit.detail = Some(listen.to_string());
        unit.probe = Probe::Http { url: format!("http://{listen}/health") };
        unit.after = after;
        Ok(unit)
    }

    /// What would be started, for `--dry-run`.
    pub fn describe(&self) -> String {
        let mut text = format!("state directory: {}\n", self.config.state_dir.display());
        let store = match &self.cluster {
            Some(cluster) => format!("private cluster in {}", cluster.data_dir().display()),
            None => lares_config::mask_password(&self.config.store.url),
        };
        let _ = writeln!(text, "PostgreSQL: {store}");
        for model in &self.models {
            let port = self.config.models[&model.name].port;
            let args: Vec<_> = model.args.iter().map(|arg| arg.to_string_lossy()).collect();
            let _ = writeln!(
                text,
                "model {}: {}, {} predicted, on 127.0.0.1:{port}\n  {} {}",
                model.name,
                model.file.display(),
                output::bytes(model.prediction.needed()),
                model.server.path.display(),
                args.join(" ")
            );
        }
        let _ = writeln!(text, "coordinator: http://{}/v1", self.config.coordinator.listen);
        let _ = writeln!(text, "ralph: http://{}", self.config.ralph.listen);
        let _ = writeln!(text, "tools: http://{}/mcp", self.config.tools.listen);
        let _ = write!(text, "healer: http://{}", self.config.healer.listen);
        text
    }
}

/// The first keys: one for the person who started the stack, one for the agents. Machines that share a database have
/// their own, so that none takes another's away.
async fn ensure_keys(store: &Store, config: &Config) -> Result<()> {
    let host = nix::unistd::gethostname().context("this machine has no name")?;
    let named = |name: &str| format!("{name}@{}", host.to_string_lossy());
    key::ensure(store, &named("admin"), Role::Admin, &config.admin_key_file()).await?;
    // A key from elsewhere is somebody else's to make.
    if config.ralph.coordinator_key_file.is_none() {
        key::ensure(store, &named("agent"), Role::Client, &config.agent_key_file()).await?;
    }
    Ok(())
}

/// The key that llama-server asks for and the coordinator shows: without one every local user could use the model.
async fn ensure_llama_key(config: &Config) -> Result<PathBuf> {
    let path = config.llama_key_file();
    let file = path.clone();
    spawn_blocking(move || {
        if file.exists() {
            secret::read(&file).map(drop)
        } else {
            Secret::generate().and_then(|secret| secret::write(&file, &secret))
        }
    })
    .await??;
    Ok(path)
}

/// Ports chosen so far. They stay bound until all are chosen, so none is chosen twice.
#[derive(Default)]
struct Ports(Vec<TcpListener>);

impl Ports {
    /// Takes the configured address, port 0 standing for any that is free.
    fn claim(&mut self, key: &str, address: SocketAddr) -> Result<SocketAddr> {
        let listener = TcpListener::bind(address).with_context(|| {
            format!("{key}: {address} cannot be used; stop what listens there, or set another address (port 0: any free one)")
        })?;
        let chosen = listener.local_addr()?;
        self.0.push(listener);
        Ok(chosen)
    }

    fn free_from(&mut self, first: u16) -> Result<u16> {
        for port in first..first.saturating_add(1000) {
            if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
                self.0.push(listener);
                return Ok(port);
            }
        }
        bail!("no free port from {first} on for a model; set models.NAME.port")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_taken_port_is_an_error_that_names_the_key() {
        let holder = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let taken = holder.local_addr().unwrap();
        let error = Ports::default().claim("ralph.listen", taken).unwrap_err();
        assert!(error.to_string().starts_with(&format!("ralph.listen: {taken} cannot be used")), "{error}");
    }

    #[test]
    fn no_port_is_chosen_twice() {
        let mut ports = Ports::default();
        let first = ports.free_from(18_080).unwrap();
        let second = ports.free_from(18_080).unwrap();
        assert_ne!(first, second);
    }

    #[test]
    fn a_stack_without_models_gets_one_and_one_with_upstreams_does_not() {
        let mut config = Config::default();
        complete_models(&mut config);
        assert_eq!(config.models["coder"].source.as_deref(), Some(DEFAULT_MODEL));
        let mut remote = Config::default();
        remote.coordinator.upstreams.insert("cloud".into(), lares_config::Upstream::default());
        complete_models(&mut remote);
        assert!(remote.models.is_empty());
    }
}
